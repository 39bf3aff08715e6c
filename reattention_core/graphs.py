"""Which passes of fixed shapes a corpus has, and when they run; knows no sampling, no text and no selection rule.

A small model's pass over a question or a token is a thousand launches, each of which takes the GPU less time than Python takes
to ask for it. Four passes are alike in every question to a corpus and are recorded once (`passes`): the one that runs a question
behind the sink alone, for recall; the one that runs it behind each of many passages, to compare them; and, once what an answer
may see no longer changes (`Reader.settled`), the ones that run its prompt and write a token. Where recording is not wanted, or
a model cannot be recorded, the same passes are run launch by launch, so that answers are the same.
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
Result = TypeVar("Result")


class Graphs:
    """The passes over one corpus, by their shapes.

    Args:
        shapes: (G, key D, value D) of every layer of the model.
        window: tokens it was trained on.
        pages: the corpus; a step reads it, or what is staged of it.
        recorded: whether as CUDA graphs.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], window: int, pages: Pages, recorded: bool) -> None:
        self._shapes, self._window, self._recorded = shapes, window, recorded
        self._useful = self.possible(pages)
        self._answers: dict[tuple[Pages, int, int], Answering] = {}
        self._questions: dict[int, Asking] = {}
        self._comparisons: dict[tuple[Pages, int, int, int], Comparing] = {}
        # Their scores over the vocabulary lie in one place: no two passes run at once.
        self._shared = torch.cuda.graph_pool_handle() if self._useful and recorded else None

    @staticmethod
    def possible(pages: Pages) -> bool:
        """Whether attention over these pages takes fixed shapes at all."""
        return pages.filled.is_cuda and fused(pages.filled.device)

    def probed(self, model: PreTrainedModel, sink: Pages, ids: Sequence[int]) -> Probed | None:
        """What the tokens of a text behind the sink are in every layer; None where no such pass can do it.

        Args:
            model: an attached model.
            sink: the corpus's first page.
            ids: the text's token ids.
        """
        room = padded(len(ids))
        if not self._useful or room > LONGEST:
            return None

        def make(recorded: bool) -> Asking:
            return Asking(model, self._shapes, self._window, sink, room, recorded)

        return self._done(lambda one: one(ids), self._questions, room, make)

    def compared(
        self,
        model: PreTrainedModel,
        pages: Pages,
        ids: Sequence[int],
        scored: slice,
        passages: Sequence[torch.Tensor],
    ) -> torch.Tensor | None:
        """Log-likelihood of a part of a text behind some of the passages, the first ones; None where no such pass can do it.

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

        def make(recorded: bool) -> Comparing:
            return Comparing(model, self._shapes, self._window, pages, rows, entries, room, recorded, self._shared)

        shape, some = (pages, rows, entries, room), passages[:rows]
        return self._done(lambda one: one(ids, scored, some), self._comparisons, shape, make, 2 * MOST)

    @contextmanager
    def taking_over(self, model: PreTrainedModel, cache: ContextCache) -> Iterator[None]:
        """Inside, these passes run single tokens, where they can, and the prompt where all of it is one pass.

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
        """The passes of an answer and the logits after its prompt [1, n]; None twice where no such pass can run it."""
        reader, n, room = cache.reader, ids.shape[1], cache.room
        if not isinstance(reader, Settled) or reader.selection.table is None or cache.layers[0].n_tail:
            return None, None
        table, width = reader.selection.table, reader.selection.addresses.shape[-1]
        if padded(n) > min(LONGEST, room) or width + padded(n) > self._window:
            return None, None
        done = self._answering(lambda one: (one, one.prompt(ids, table)), model, forward, cache, table, room)
        if done is None:
            return None, None
        cache.widest = width
        return done

    def _begun(self, model: PreTrainedModel, forward: Callable[..., Any], cache: ContextCache) -> Answering | None:
        """The passes of an answer, which stand where its prompt's pass ended."""
        if cache.read is None or cache.read.table is None:
            return None
        table, room = cache.read.table, cache.layers[0].tail_keys.storage.shape[2]

        def begin(one: Answering) -> Answering:
            one.begin(cache, table)
            return one

        return self._answering(begin, model, forward, cache, table, room)

    def _answering(
        self,
        use: Callable[[Answering], Result],
        model: PreTrainedModel,
        forward: Callable[..., Any],
        cache: ContextCache,
        table: PageTable,
        room: int,
    ) -> Result | None:
        """What the passes of answers over as many pages with as much room do; None where there can be none."""
        pages = cache.pages
        if not self._useful or pages is None or pages.below is not None:
            return None
        # Answers that read about as many pages share their passes.
        entries = max(FEWEST, next_power(table.pages.shape[-1]))
        # What was made over pages that are no longer read holds them.
        self._answers = {shape: one for shape, one in self._answers.items() if shape[0] is pages}

        def make(recorded: bool) -> Answering:
            return Answering(model, forward, self._shapes, self._window, pages, table.widened(entries), room, recorded)

        return self._done(use, self._answers, (pages, entries, room), make)

    def _done(
        self,
        use: Callable[[Pass], Result],
        known: dict[Any, Pass],
        shape: Any,
        make: Callable[[bool], Pass],
        most: int = MOST,
    ) -> Result | None:
        """What the pass of a shape does, made now if there is none; None where this model has no such passes."""
        while self._useful:
            try:
                one = known.pop(shape, None) or make(self._recorded)
                result = use(one)
            except RuntimeError as error:
                self._give_up(error)
                continue
            while len(known) >= most:
                known.pop(next(iter(known)))
            known[shape] = one
            return result
        return None

    def _give_up(self, error: RuntimeError) -> None:
        """Record no more: what waits for the device (some mixtures of experts) cannot be. Then have no such passes at all."""
        reason = str(error).splitlines()[0]
        if self._recorded:
            logger.warning("running without CUDA graphs, which is slower: %s", reason)
        else:
            logger.info("running without passes of fixed shapes: %s", reason)
        self._useful, self._recorded = self._recorded, False
