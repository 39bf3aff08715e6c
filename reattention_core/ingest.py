"""Documents' tokens become pages of keys and values, in one of two ways; knows no texts, files or questions.

`independent`: every document is read alone behind one shared sink, several short ones in one batched forward pass; cost
is linear in the corpus. `joint`: the papers' streaming prefill, every document seeing the earlier ones through the
selector. Either way a document ends on its own last page.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import numpy as np
import torch

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.layout import Layout
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.models.attach import Attachment
from reattention_core.prefill import Cancelled, prefill
from reattention_core.select.base import Context, Reader, Selector
from reattention_core.select.fixed import Everything, Recording, SinkAndLocal

GROUP = 4
"""Full forward passes after which what was read is made durable; fewer would sort less by length and pad more."""


class Ingest:
    """One reading of documents into pages.

    Args:
        attachment: the attached model.
        sink: pages that begin with the one before every document, see `read_sink`; None while that is read itself. In
            `joint` the first documents may follow: they are taken as they are.
        documents: token ids of every document.
        layout: where they will lie.
        selector: reads earlier documents in `joint`, and may ask for summaries of chunks in both.
        dtype: of the pages.
        reach: tokens of its own document that a chunk sees in `independent`, half of them the chunk.
        batch_tokens: tokens in one forward pass of short documents.
        read: called with the number of documents' tokens read, after every forward pass.
        cancelled: asked before every forward pass.
    """

    def __init__(
        self,
        attachment: Attachment,
        sink: Pages | None,
        documents: Sequence[Sequence[int]],
        layout: Layout,
        selector: Selector,
        dtype: torch.dtype,
        reach: int,
        batch_tokens: int,
        read: Callable[[int], None],
        cancelled: Cancelled,
    ) -> None:
        self._attachment, self._layout = attachment, layout
        self._selector, self._batch_tokens = selector, batch_tokens
        self._reach = min(reach, attachment.window - PAGE)
        self._read, self._cancelled = read, cancelled
        self._model, device = attachment.model, attachment.model.device
        # All tokens are on the device before the first pass, and all places: a copy between passes would wait for them.
        ids = np.fromiter(chain.from_iterable(documents), np.int64, sum(layout.lengths))
        self._ids = torch.from_numpy(ids).to(device)
        begins = [0, *accumulate(layout.lengths)][:-1]
        self._places = torch.tensor([begins, layout.lengths, layout.starts], device=device)
        self.pages = Pages.allocate(attachment.shapes, layout.first, layout.filled, dtype, device)
        if selector.summary_size:
            self.pages.reserve_summaries(attachment.query_shapes, selector.summary_size)
        self._taken = 0 if sink is None else sink.n_pages
        if sink is not None:
            self.pages.begin_with(sink)
            if sink.n_pages > 1:
                self.pages.hold(1, sink)

    def sink(self) -> Pages:
        """Read the one document as a sink, with nothing before it."""
        self._run([0], self._places, Everything(), None, PAGE)
        return self.pages

    def independent(self, finished: Callable[[int, int], None] | None = None) -> Pages:
        """Read every document alone behind the sink.

        Args:
            finished: called with documents first..stop-1 when they have been read, so that they can be made durable; with
                it, they are read in groups of a few forward passes.

        Raises:
            CancelledError: between two forward passes.
        """
        lengths = self._layout.lengths
        for group in [range(len(lengths))] if finished is None else groups(lengths, self._batch_tokens):
            self._read_group(group)
            if finished is not None:
                finished(group.start, group.stop)
        return self.pages

    def _read_group(self, numbers: Sequence[int]) -> None:
        """Read some documents, those of about the same length in one batch."""
        lengths, half = self._layout.lengths, max(self._reach // 2, 1)
        sink = self.pages.before(1)
        # The same attention either way: a GPU is quicker with one pass, a CPU with two whose masks are smaller.
        whole, halves = SinkAndLocal(sink, 0), SinkAndLocal(sink, self._reach - half)

        def read(numbers: Sequence[int], places: torch.Tensor) -> None:
            at_once = places.is_cuda and lengths[numbers[-1]] <= self._reach
            self._run(numbers, places, whole if at_once else halves, sink, self._reach if at_once else half)

        order = sorted(numbers, key=lengths.__getitem__)
        places = self._places[:, torch.tensor(order, device=self._places.device)]
        begin = 0
        for end, number in enumerate(order):
            if lengths[number] * (end + 1 - begin) > self._batch_tokens and end > begin:
                read(order[begin:end], places[:, begin:end])
                begin = end
        read(order[begin:], places[:, begin:])

    def joint(self, finished: Callable[[int, int], None] | None = None) -> Pages:
        """Read the documents one after another, each seeing the earlier ones as the selector says.

        Args:
            finished: called with documents first..stop-1 when they have been read, as soon as they are a batch of tokens.

        Raises:
            CancelledError: between two chunks.
        """
        attachment, tokens, first = self._attachment, 0, 0
        for number, (start, length) in enumerate(zip(self._layout.starts, self._layout.lengths, strict=True)):
            if start // PAGE < self._taken:
                first = number + 1
                continue
            below = self.pages.before(start // PAGE)
            context = Context(attachment.window, length, attachment.scaling, attachment.rotations, below)
            reader = self._selector.reader(context)
            self._run([number], self._places[:, number : number + 1], reader, below, reader.chunk)
            tokens += length
            if finished is not None and (tokens >= self._batch_tokens or number + 1 == len(self._layout.lengths)):
                finished(first, number + 1)
                first, tokens = number + 1, 0
        return self.pages

    def _run(
        self, numbers: Sequence[int], places: torch.Tensor, reader: Reader, below: Pages | None, chunk: int
    ) -> None:
        """Read documents as rows of one batch, and write what they left in the cache to their pages.

        Args:
            numbers: of the documents.
            places: [3, B], where each begins among all tokens, its length, and its first address.
            reader: what their tokens see.
            below: the pages that it may name.
            chunk: tokens of each that are run at a time.
        """
        attachment = self._attachment
        recording = Recording(reader) if self._selector.summary_size else None
        cache = ContextCache(len(attachment.shapes), recording or reader, attachment.window, below)
        begins, lengths, starts = places
        real = torch.tensor([self._layout.lengths[number] for number in numbers])
        # Padding stands on the right, where no real token can see it; any id will do.
        column = torch.arange(int(real.max()), device=self._ids.device)
        ids = self._ids[begins[:, None] + torch.minimum(column, lengths[:, None] - 1)]

        def report(done: int, new: int) -> None:
            self._read(int((real.clamp(max=done) - real.clamp(max=done - new)).sum()))

        prefill(self._model, cache, ids, chunk, self._cancelled, report)
        for index, layer in enumerate(cache.layers):
            self.pages.write(index, starts, lengths, layer.tail_keys.tokens, layer.tail_values.tokens)
            if recording is not None:
                self._summarise(
                    index, numbers, layer.tail_keys.tokens, layer.tail_values.tokens, recording.queries[index]
                )

    def _summarise(
        self,
        index: int,
        numbers: Sequence[int],
        keys: torch.Tensor,
        values: torch.Tensor,
        queries: Sequence[torch.Tensor],
    ) -> None:
        """Store what the selector must remember of a layer's keys and values [B, G, n, D] and queries [B, H, ., D]."""
        attachment = self._attachment
        for row, number in enumerate(numbers):
            n = self._layout.lengths[number]
            query = torch.cat([chunk[row] for chunk in queries], 1)[:, :n]
            summary = self._selector.summarise(
                query, keys[row, :, :n], values[row, :, :n], attachment.rotations[index], attachment.scaling[index]
            )
            self.pages.summarise(index, self._layout.starts[number], summary)


def groups(lengths: Sequence[int], batch_tokens: int) -> list[range]:
    """The numbers of documents that are read together: about `GROUP` forward passes of so many tokens."""
    found, tokens, first = list[range](), 0, 0
    for number, length in enumerate(lengths):
        tokens += length
        if tokens >= GROUP * batch_tokens or number == len(lengths) - 1:
            found.append(range(first, number + 1))
            tokens, first = 0, number + 1
    return found


def read_sink(
    attachment: Attachment, ids: Sequence[int], selector: Selector, dtype: torch.dtype, cancelled: Cancelled
) -> Pages:
    """The page of 32 token ids that stands before every document; arguments as for `Ingest`."""
    layout = Layout((0,), (len(ids),), torch.zeros(1, dtype=torch.int64), torch.tensor([len(ids)]))
    return Ingest(attachment, None, [ids], layout, selector, dtype, PAGE, PAGE, lambda _: None, cancelled).sink()
