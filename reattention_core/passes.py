"""Forward passes of fixed shapes, with the buffers they read and write; knows no rule, and not which passes are worth keeping.

Each is recorded as a CUDA graph when it is made, or run anew each time: the same kernels over the same shapes, so that every bit
of the result is the same. Texts are padded on the right to a pass's length: no token sees what stands behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from reattention_core.cache.buffers import BufferCache
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.select.base import Probed, Selection
from reattention_core.select.fixed import Recording, Settled
from reattention_kernels import PageTable, page_table

Shapes = Sequence[tuple[int, int, int]]
"""(G, key D, value D) of every layer of a model."""


def padded(n: int) -> int:
    """Tokens of the recorded pass that runs a text of `n`."""
    return -(-n // PAGE) * PAGE


class Answering:
    """The passes of an answer over settled pages: one writes a token, others run a prompt of up to so many tokens.

    Args:
        model: an attached model.
        forward: its own forward.
        shapes: of its layers.
        window: tokens it was trained on.
        pages: what is read.
        table: the pages that are read; only its length stays, and no answer may read more.
        room: tokens of the tail.
        recorded: whether as CUDA graphs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Callable[..., Any],
        shapes: Shapes,
        window: int,
        pages: Pages,
        table: PageTable,
        room: int,
        recorded: bool,
    ) -> None:
        device = pages.filled.device
        self._forward, self._recorded = forward, recorded
        self._ids = ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = position = torch.zeros(1, dtype=torch.int64, device=device)
        self._count = count = torch.ones(1, dtype=torch.int32, device=device)
        self._table = PageTable(*(part.clone() for part in table))
        reader = Settled(Selection(position[:0], table=self._table))
        like = torch.empty(0, dtype=model.dtype, device=device)
        self._cache = cache = BufferCache(shapes, reader, window, pages, self._table, like, room, position, count)
        self._prompts: dict[int, _Prompt] = {}

        def run() -> torch.Tensor:
            out = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            position.add_(1)
            count.add_(1)
            logits: torch.Tensor = out.logits
            return logits

        self._run = repeated(run, cache, recorded)

    def prompt(self, ids: torch.Tensor, table: PageTable) -> torch.Tensor:
        """Logits [1, 1, vocabulary] after a prompt [1, n], which stands behind these pages; steps go on from there.

        Raises:
            RuntimeError: its pass cannot be recorded.
        """
        n = ids.shape[1]
        known = self._prompts.get(padded(n))
        if known is None:
            known = self._prompts[padded(n)] = _Prompt(self._forward, self._cache, padded(n), self._recorded)
        self._stand(table, n)
        return known(ids)

    def begin(self, cache: ContextCache, table: PageTable) -> None:
        """Stand behind what a question's cache holds, where its prompt's pass was run."""
        for own, layer in zip(self._cache.layers, cache.layers, strict=True):
            own.tail_keys.storage[:, :, : layer.n_tail] = layer.tail_keys.tokens
            own.tail_values.storage[:, :, : layer.n_tail] = layer.tail_values.tokens
        self._stand(table, cache.layers[0].n_tail)

    def _stand(self, table: PageTable, n: int) -> None:
        """These pages and a tail of `n` tokens are before the next step."""
        for buffer, part in zip(self._table, table.widened(self._table.pages.shape[-1]), strict=True):
            buffer.copy_(part)
        self._position.fill_(n)
        self._count.fill_(n + 1)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, 1, vocabulary] after one more token [1, 1]."""
        self._ids.copy_(ids)
        return self._run()


class _Prompt:
    """The pass that runs a prompt into the tail of an answer's passes; see `Answering.prompt`."""

    def __init__(self, forward: Callable[..., Any], over: BufferCache, room: int, recorded: bool) -> None:
        device = over.layers[0].tail_keys.storage.device
        self._ids = ids = torch.zeros(1, room, dtype=torch.int64, device=device)
        self._last = last = torch.zeros(1, dtype=torch.int64, device=device)
        position, count = torch.arange(room, device=device), torch.full((1,), room, dtype=torch.int32, device=device)
        cache = over.elsewhere(position, count)

        def run() -> torch.Tensor:
            out = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=last)
            logits: torch.Tensor = out.logits
            return logits

        self._run = repeated(run, cache, recorded)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        n = ids.shape[1]
        self._ids[:, :n] = ids
        self._last.fill_(n - 1)
        return self._run()


class Asking:
    """The pass that runs a text of up to `room` tokens behind the sink and keeps its queries and values."""

    def __init__(
        self, model: PreTrainedModel, shapes: Shapes, window: int, sink: Pages, room: int, recorded: bool
    ) -> None:
        device = sink.filled.device
        self._ids = ids = torch.zeros(1, room, dtype=torch.int64, device=device)
        table = page_table(torch.zeros(1, dtype=torch.int64, device=device), sink.filled)
        position, count = torch.arange(room, device=device), torch.full((1,), room, dtype=torch.int32, device=device)
        reader = Recording(Settled(Selection(position[:0], table=table)))
        like = torch.empty(0, dtype=model.dtype, device=device)
        self._cache = cache = BufferCache(shapes, reader, window, sink, table, like, room, position, count)

        def run() -> list[torch.Tensor]:
            reader.queries.clear()
            model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            return [reader.queries[layer][0] for layer in range(len(shapes))]

        self._run = repeated(run, cache, recorded)

    def __call__(self, ids: Sequence[int]) -> Probed:
        """The tokens' queries and values in every layer; the padding behind the text is seen by none of them."""
        self._ids[0, : len(ids)] = torch.tensor(ids, device=self._ids.device)
        queries = self._run()
        return Probed(
            [query[0, :, : len(ids)].clone() for query in queries],
            [layer.tail_values.storage[0, :, : len(ids)].clone() for layer in self._cache.layers],
        )


class Comparing:
    """The pass that says how likely a text of up to `room` tokens is behind each of up to `rows` passages.

    Args:
        model: an attached model.
        shapes: of its layers.
        window: tokens it was trained on.
        pages: what the passages are of; page 0 is the sink.
        rows: passages.
        entries: pages that stand before the text, the sink with them, at most.
        room: tokens of the text at most.
        recorded: whether as a CUDA graph.
        pool: where what it works out meanwhile lies, with other passes of which none runs at the same time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: Shapes,
        window: int,
        pages: Pages,
        rows: int,
        entries: int,
        room: int,
        recorded: bool,
        pool: Any = None,
    ) -> None:
        device = pages.filled.device
        self._pages, self._rows, self._entries = pages, rows, entries
        self._ids = ids = torch.zeros(1, room, dtype=torch.int64, device=device)
        self._counts = counts = torch.zeros(room - 1, dtype=torch.bool, device=device)
        self._table = self._tabled([])
        position, count = torch.arange(room, device=device), torch.full((1,), room, dtype=torch.int32, device=device)
        reader = Settled(Selection(position[:0], table=self._table))
        like = torch.empty(0, dtype=model.dtype, device=device)
        cache = BufferCache(shapes, reader, window, pages, self._table, like, room, position, count, rows)

        def run() -> torch.Tensor:
            logits = model(input_ids=ids.expand(rows, -1), past_key_values=cache, use_cache=True).logits
            following = ids[:, 1:, None]
            found = []
            for some in logits[:, :-1].split(8):  # so that few are there in float32 at once
                chosen = some.gather(2, following.expand(len(some), -1, -1))[..., 0].float()
                found.append(torch.where(counts, chosen - some.float().logsumexp(-1), 0.0).sum(1))
            return torch.cat(found)

        self._run = repeated(run, cache, recorded, pool)

    def __call__(self, ids: Sequence[int], scored: slice, passages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log-likelihoods [R] float32 of the tokens `scored` of a text, the first one never among them."""
        device, text = self._ids.device, torch.zeros_like(self._ids[0], device="cpu")
        text[: len(ids)] = torch.tensor(ids)
        counts = torch.zeros(len(self._counts), dtype=torch.bool)
        counts[scored.start - 1 : scored.stop - 1] = True
        self._ids[0], self._counts[:] = text.to(device), counts.to(device)
        for buffer, part in zip(self._table, self._tabled(passages), strict=True):
            buffer.copy_(part)
        return self._run()[: len(passages)].clone()

    def _tabled(self, passages: Sequence[torch.Tensor]) -> PageTable:
        """The table of the sink and each passage; rows without a passage read the sink alone."""
        table = torch.full((self._rows, 1, self._entries), -1, dtype=torch.int64)
        table[:, :, 0] = 0
        for row, passage in enumerate(passages):
            table[row, 0, 1 : 1 + len(passage)] = passage
        return page_table(table.to(self._ids.device), self._pages.filled)


Result = TypeVar("Result")


def repeated(run: Callable[[], Result], cache: BufferCache, recorded: bool, pool: Any = None) -> Callable[[], Result]:
    """What runs a pass again and again: each time anew, or as it was recorded once.

    Args:
        run: the pass; should not hold whoever keeps what is returned, so that its memory goes as soon as that does.
        cache: what it reads and writes.
        recorded: whether as a CUDA graph.
        pool: see `recording`.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    if recorded:
        return recording(run, cache.layers[0].tail_keys.storage.device, pool)

    def anew() -> Result:
        cache.held = []  # of the last run
        return run()

    return anew


def recording(run: Callable[[], Result], device: torch.device, pool: Any = None) -> Callable[[], Result]:
    """Run a function once, then record it, with memory of its own or of a pool: what replays it and gives its result.

    Raises:
        RuntimeError: it does what a graph cannot hold, such as waiting for the device.
    """
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    try:
        with torch.cuda.stream(aside):
            run()  # compiles the kernels and lets libraries allocate
    finally:  # where it failed too: what it began to write must not be given away under it
        here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return _Replay(graph, result, run)


@dataclass(frozen=True)
class _Replay(Generic[Result]):
    """A recorded pass.

    Attributes:
        graph: the launches.
        result: what each replay writes anew.
        run: what was recorded: it holds the memory that is read, of which a graph keeps none.
    """

    graph: torch.cuda.CUDAGraph
    result: Result
    run: Callable[[], Result]

    def __call__(self) -> Result:
        self.graph.replay()
        return self.result
