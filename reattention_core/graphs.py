"""Records forward passes as CUDA graphs and replays them; knows no sampling, no text and no selection rule.

A small model's pass over a question or a token is a thousand launches, each of which takes the GPU less time than Python takes
to ask for it. Two passes are alike in every question to a corpus and are recorded once: the one that runs a question behind the
sink alone, for recall, and the one that writes a token once what it may see no longer changes (`Reader.settled`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from reattention_core.cache.buffers import BufferCache
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.select.base import Probed, Selection
from reattention_core.select.fixed import Recording, Settled
from reattention_kernels import PageTable, fused, page_table

logger = logging.getLogger(__name__)

MOST = 4
"""Passes of a kind kept for a corpus; each holds a tail of its own."""

LONGEST = 256
"""Tokens of a question that a recorded pass runs; a longer one keeps the GPU busy without."""

Pass = TypeVar("Pass", "_Step", "_Question")


class Graphs:
    """The recorded passes over one corpus, by the shapes they were recorded with.

    Args:
        shapes: (G, key D, value D) of every layer of the model.
        window: tokens it was trained on.
        pages: the corpus; a step reads it, or what is staged of it.
        wanted: False records nothing: every pass is run.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], window: int, pages: Pages, wanted: bool) -> None:
        self._shapes, self._window = shapes, window
        self._useful = wanted and pages.filled.is_cuda and fused(pages.filled.device)
        self._steps: dict[tuple[Pages, int, int], _Step] = {}
        self._questions: dict[int, _Question] = {}

    def probed(self, model: PreTrainedModel, sink: Pages, ids: Sequence[int]) -> Probed | None:
        """What the tokens of a text behind the sink are in every layer; None where the pass must be run.

        Args:
            model: an attached model.
            sink: the corpus's first page.
            ids: the text's token ids.
        """
        room = -(-len(ids) // PAGE) * PAGE
        if not self._useful or room > LONGEST:
            return None

        def record() -> _Question:
            return _Question(model, self._shapes, self._window, sink, room)

        recorded = self._kept(self._questions, room, record)
        return None if recorded is None else recorded(ids)

    @contextmanager
    def replaying(self, model: PreTrainedModel, cache: ContextCache) -> Iterator[None]:
        """Inside, passes over one token are replayed, where they can be; the first pass, the prompt's, never is.

        Args:
            model: an attached model; its `forward` is replaced meanwhile.
            cache: the question's.
        """
        if not self._useful or not cache.reader.settled:
            yield
            return
        forward: Callable[..., Any] = model.forward
        prompt_read, step = False, None

        @wraps(forward)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            nonlocal prompt_read, step
            ids = kwargs.get("input_ids")
            if not prompt_read or ids is None or tuple(ids.shape) != (1, 1):
                prompt_read = True
                return forward(*args, **kwargs)
            step = step or self._begun(forward, cache)
            if step is None:
                return forward(*args, **kwargs)
            cache.stepped += 1
            return CausalLMOutputWithPast(logits=step(ids), past_key_values=cache)

        own = vars(model).get("forward")
        model.forward = replaced
        try:
            yield
        finally:
            if own is None:
                del model.forward
            else:
                model.forward = own
            cache.widest += cache.stepped

    def _begun(self, forward: Callable[..., Any], cache: ContextCache) -> "_Step | None":
        """A recorded step that stands where the prompt's pass ended."""
        selection, pages = cache.read, cache.pages
        if selection is None or selection.table is None or pages is None or pages.below is not None:
            return None
        # What was recorded over pages that are no longer read holds them.
        self._steps = {shape: step for shape, step in self._steps.items() if shape[0] is pages}
        table, room = selection.table, cache.layers[0].tail_keys.storage.shape[2]

        def record() -> _Step:
            return _Step(forward, self._shapes, self._window, pages, table, cache.layers[0].tail_keys.storage)

        step = self._kept(self._steps, (pages, len(table.pages), room), record)
        if step is not None:
            step.begin(cache, table)
        return step

    def _kept(self, recorded: dict[Any, Pass], shape: Any, record: Callable[[], Pass]) -> Pass | None:
        """The pass of a shape, recorded now if there is none; None where this model's passes cannot be recorded."""
        found = recorded.pop(shape, None)
        if found is None:
            try:
                found = record()
            except RuntimeError as error:
                # A pass that waits for the device (some mixtures of experts do) cannot be recorded.
                logger.warning("running without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
                self._useful = False
                return None
            while len(recorded) >= MOST:
                recorded.pop(next(iter(recorded)))
        recorded[shape] = found
        return found


class _Step:
    """The pass that writes one token, and the buffers it reads and writes."""

    def __init__(
        self,
        forward: Callable[..., Any],
        shapes: Sequence[tuple[int, int, int]],
        window: int,
        pages: Pages,
        table: PageTable,
        tail: torch.Tensor,
    ) -> None:
        device = tail.device
        self._ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._count = torch.ones(1, dtype=torch.int32, device=device)
        self._table = PageTable(*(part.clone() for part in table))
        reader = Settled(Selection(self._position[:0], table=self._table))
        self._cache = BufferCache(
            shapes, reader, window, pages, self._table, tail, tail.shape[2], self._position, self._count
        )

        def run() -> torch.Tensor:
            out = forward(input_ids=self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._position += 1
            self._count += 1
            logits: torch.Tensor = out.logits
            return logits

        self._graph, self._logits = _record(run, device)

    def begin(self, cache: ContextCache, table: PageTable) -> None:
        """Stand behind what a question's cache holds."""
        for buffer, part in zip(self._table, table, strict=True):
            buffer.copy_(part)
        for own, layer in zip(self._cache.layers, cache.layers, strict=True):
            own.tail_keys.storage[:, :, : layer.n_tail] = layer.tail_keys.tokens
            own.tail_values.storage[:, :, : layer.n_tail] = layer.tail_values.tokens
        self._position.fill_(cache.layers[0].n_tail)
        self._count.fill_(cache.layers[0].n_tail + 1)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, 1, vocabulary] after one more token."""
        self._ids.copy_(ids)
        self._graph.replay()
        return self._logits


class _Question:
    """The pass that runs a text of up to `room` tokens behind the sink and keeps its queries and values."""

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: Sequence[tuple[int, int, int]],
        window: int,
        sink: Pages,
        room: int,
    ) -> None:
        device = sink.filled.device
        self._ids = torch.zeros(1, room, dtype=torch.int64, device=device)
        # A graph keeps none of the memory that it reads: what was made before the recording is held by the cache here.
        table = page_table(torch.zeros(1, dtype=torch.int64, device=device), sink.filled)
        position, count = torch.arange(room, device=device), torch.full((1,), room, dtype=torch.int32, device=device)
        reader = Recording(Settled(Selection(position[:0], table=table)))
        like = torch.empty(0, dtype=model.dtype, device=device)
        self._cache = BufferCache(shapes, reader, window, sink, table, like, room, position, count)

        def run() -> list[torch.Tensor]:
            reader.queries.clear()
            model.base_model(input_ids=self._ids, past_key_values=self._cache, use_cache=True)
            return [reader.queries[layer][0] for layer in range(len(shapes))]

        self._graph, self._queries = _record(run, device)

    def __call__(self, ids: Sequence[int]) -> Probed:
        """The tokens' queries and values in every layer; the padding behind the text is seen by none of them."""
        self._ids[0, : len(ids)] = torch.tensor(ids, device=self._ids.device)
        self._graph.replay()
        return Probed(
            [query[0, :, : len(ids)].clone() for query in self._queries],
            [layer.tail_values.storage[0, :, : len(ids)].clone() for layer in self._cache.layers],
        )


Result = TypeVar("Result")


def _record(run: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Run a function once, then record it.

    Raises:
        RuntimeError: it does what a graph cannot hold, such as waiting for the device.
    """
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        run()  # compiles the kernels and lets libraries allocate
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return graph, result
