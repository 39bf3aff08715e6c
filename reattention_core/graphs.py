"""Which recorded passes a corpus has, and when they are replayed; knows no sampling, no text and no selection rule.

A small model's pass over a question or a token is a thousand launches, each of which takes the GPU less time than Python takes
to ask for it. Four passes are alike in every question to a corpus and are recorded once (`passes`): the one that runs a question
behind the sink alone, for recall; the one that runs it behind each of many passages, to compare them; and, once what an answer
may see no longer changes (`Reader.settled`), the ones that run its prompt and write a token.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.passes import Answering, Asking, Comparing, padded
from reattention_core.select.base import Probed
from reattention_core.select.fixed import Settled
from reattention_kernels import PageTable, fused
from reattention_kernels.launch import next_power

logger = logging.getLogger(__name__)

MOST = 4
"""Passes of a kind kept for a corpus, of those that compare twice as many; each holds a tail of its own."""

LONGEST = 256
"""Tokens of a question that a recorded pass runs; a longer one keeps the GPU busy without."""

FEWEST = 8
"""Pages that a recorded answer has places for at least."""

ROWS = 16
"""Passages are compared this many at a time, or a multiple: what a question compares on a GPU is one, and a third of that."""

LOGITS = 2**28
"""Scores over the vocabulary that exist at once while passages are compared, as far as one lot of ROWS allows."""

Pass = TypeVar("Pass", Answering, Asking, Comparing)


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
        self._useful = wanted and self.possible(pages)
        self._answers: dict[tuple[Pages, int, int], Answering] = {}
        self._questions: dict[int, Asking] = {}
        self._comparisons: dict[tuple[Pages, int, int, int], Comparing] = {}
        # Their scores over the vocabulary lie in one place: no two passes run at once.
        self._shared = torch.cuda.graph_pool_handle() if self._useful else None

    @staticmethod
    def possible(pages: Pages) -> bool:
        """Whether passes over these pages can be recorded at all."""
        return pages.filled.is_cuda and fused(pages.filled.device)

    def probed(self, model: PreTrainedModel, sink: Pages, ids: Sequence[int]) -> Probed | None:
        """What the tokens of a text behind the sink are in every layer; None where the pass must be run.

        Args:
            model: an attached model.
            sink: the corpus's first page.
            ids: the text's token ids.
        """
        room = padded(len(ids))
        if not self._useful or room > LONGEST:
            return None

        def record() -> Asking:
            return Asking(model, self._shapes, self._window, sink, room)

        recorded = self._kept(self._questions, room, record)
        return None if recorded is None else recorded(ids)

    def compared(
        self,
        model: PreTrainedModel,
        pages: Pages,
        ids: Sequence[int],
        scored: slice,
        passages: Sequence[torch.Tensor],
    ) -> torch.Tensor | None:
        """Log-likelihood of a part of a text behind some of the passages, the first ones; None where passes must be run.

        Args:
            model: an attached model.
            pages: the corpus, or what is staged of it.
            ids: the text's token ids.
            scored: which of them count, the first one never.
            passages: page numbers [n] int64 of each, on a CPU.

        Returns:
            [R] float32.
        """
        room, entries = padded(len(ids)), 1 + next_power(max(map(len, passages)))
        if not self._useful or room > LONGEST or entries * PAGE + room > self._window or pages.below is not None:
            return None
        most = max(LOGITS // model.config.get_text_config().vocab_size // room // ROWS, 1) * ROWS
        rows = min(-(-len(passages) // ROWS) * ROWS, most)
        # What was recorded over pages that are no longer read holds them.
        self._comparisons = {shape: one for shape, one in self._comparisons.items() if shape[0] is pages}
        for layer in range(pages.n_layers):
            pages.arrive(layer)

        def record() -> Comparing:
            return Comparing(model, self._shapes, self._window, pages, rows, entries, room, self._shared)

        recorded = self._kept(self._comparisons, (pages, rows, entries, room), record, 2 * MOST)
        return None if recorded is None else recorded(ids, scored, passages[:rows])

    @contextmanager
    def replaying(self, model: PreTrainedModel, cache: ContextCache) -> Iterator[None]:
        """Inside, passes over one token are replayed, where they can be, and so is the prompt's where all of it is one pass.

        Args:
            model: an attached model; its `forward` is replaced meanwhile.
            cache: the question's.
        """
        if not self._useful or not cache.reader.settled:
            yield
            return
        forward: Callable[..., Any] = model.forward
        passes, tried = None, False

        @wraps(forward)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes, tried
            ids: torch.Tensor | None = kwargs.get("input_ids")
            logits = None
            if ids is not None and len(ids) == 1 and not tried:
                passes, logits = self._prompted(model, forward, cache, ids)
            elif ids is not None and tuple(ids.shape) == (1, 1):
                passes = passes or self._begun(model, forward, cache)
                logits = None if passes is None else passes.step(ids)
            tried = True
            if ids is None or logits is None:
                return forward(*args, **kwargs)
            cache.stepped += ids.shape[1]
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

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

    def _prompted(
        self, model: PreTrainedModel, forward: Callable[..., Any], cache: ContextCache, ids: torch.Tensor
    ) -> tuple[Answering | None, torch.Tensor | None]:
        """The passes of an answer and the logits after its prompt [1, n]; None twice where its pass must be run."""
        reader, n, room = cache.reader, ids.shape[1], cache.room
        if not isinstance(reader, Settled) or reader.selection.table is None or cache.layers[0].n_tail:
            return None, None
        table, width = reader.selection.table, reader.selection.addresses.shape[-1]
        if padded(n) > min(LONGEST, room) or width + padded(n) > self._window:
            return None, None
        passes = self._answering(model, forward, cache, table, room)
        if passes is None:
            return None, None
        try:
            logits = passes.prompt(ids, table)
        except RuntimeError as error:
            self._give_up(error)
            return None, None
        cache.widest = width
        return passes, logits

    def _begun(self, model: PreTrainedModel, forward: Callable[..., Any], cache: ContextCache) -> Answering | None:
        """The passes of an answer, which stand where its prompt's pass ended."""
        if cache.read is None or cache.read.table is None:
            return None
        table, room = cache.read.table, cache.layers[0].tail_keys.storage.shape[2]
        passes = self._answering(model, forward, cache, table, room)
        if passes is not None:
            passes.begin(cache, table)
        return passes

    def _answering(
        self, model: PreTrainedModel, forward: Callable[..., Any], cache: ContextCache, table: PageTable, room: int
    ) -> Answering | None:
        """The passes of answers over as many pages with as much room."""
        pages = cache.pages
        if not self._useful or pages is None or pages.below is not None:
            return None
        # Answers that read about as many pages share their passes.
        entries = max(FEWEST, next_power(table.pages.shape[-1]))
        # What was recorded over pages that are no longer read holds them.
        self._answers = {shape: one for shape, one in self._answers.items() if shape[0] is pages}

        def record() -> Answering:
            return Answering(model, forward, self._shapes, self._window, pages, table.widened(entries), room)

        return self._kept(self._answers, (pages, entries, room), record)

    def _kept(self, recorded: dict[Any, Pass], shape: Any, record: Callable[[], Pass], most: int = MOST) -> Pass | None:
        """The pass of a shape, recorded now if there is none; None where this model's passes cannot be recorded."""
        found = recorded.pop(shape, None)
        if found is None:
            try:
                found = record()
            except RuntimeError as error:
                self._give_up(error)
                return None
            while len(recorded) >= most:
                recorded.pop(next(iter(recorded)))
        recorded[shape] = found
        return found

    def _give_up(self, error: RuntimeError) -> None:
        """Record nothing any more: a pass that waits for the device (some mixtures of experts do) cannot be recorded."""
        logger.warning("running without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
        self._useful = False
