"""Documents' tokens become pages of keys and values, in one of two ways; knows no texts, files or questions.

`independent`: every document is read alone behind one shared sink, several short ones in one batched forward pass; cost
is linear in the corpus. `joint`: the papers' streaming prefill, every document seeing the earlier ones through the
selector. Either way a document ends on its own last page.
"""

from collections.abc import Callable, Sequence

import torch

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.layout import Layout
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.models.attach import Attachment
from reattention_core.prefill import Cancelled, prefill
from reattention_core.select.base import Context, Reader, Selector
from reattention_core.select.fixed import Everything, Recording, SinkAndLocal


class Ingest:
    """One reading of documents into pages.

    Args:
        attachment: the attached model.
        sink: 32 token ids that stand before every document, or the page of them that was read before.
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
        sink: Sequence[int] | Pages,
        documents: Sequence[Sequence[int]],
        layout: Layout,
        selector: Selector,
        dtype: torch.dtype,
        reach: int,
        batch_tokens: int,
        read: Callable[[int], None],
        cancelled: Cancelled,
    ) -> None:
        self._attachment, self._documents = attachment, documents
        self._selector, self._batch_tokens = selector, batch_tokens
        self._reach = min(reach, attachment.window - PAGE)
        self._read, self._cancelled = read, cancelled
        self._model, self._device = attachment.model, attachment.model.device
        self.layout = layout
        self.pages = Pages.allocate(attachment.shapes, self.layout.first, dtype, self._device)
        if selector.summary_size:
            self.pages.reserve_summaries(attachment.query_shapes, selector.summary_size)
        if isinstance(sink, Pages):
            self._take_over(sink)
        else:
            self._run([list(sink)], [0], Everything(), None, PAGE)

    def independent(self) -> Pages:
        """Read every document alone behind the sink.

        Raises:
            CancelledError: between two forward passes.
        """
        sink = self.pages.before(1)
        order = sorted(range(len(self._documents)), key=lambda i: len(self._documents[i]))
        batch: list[int] = []
        for number in order:
            length = len(self._documents[number])
            if batch and length * (len(batch) + 1) > self._batch_tokens:
                self._read_alone(batch, sink)
                batch = []
            batch.append(number)
        self._read_alone(batch, sink)
        return self.pages

    def joint(self) -> Pages:
        """Read the documents one after another, each seeing the earlier ones as the selector says.

        Raises:
            CancelledError: between two chunks.
        """
        attachment = self._attachment
        for number, ids in enumerate(self._documents):
            below = self.pages.before(self.layout.starts[number] // PAGE)
            context = Context(attachment.window, len(ids), attachment.scaling, attachment.rotations, below)
            reader, start = self._selector.reader(context), self.layout.starts[number]
            self._run([list(ids)], [start], reader, below, reader.chunk)
        return self.pages

    def _take_over(self, sink: Pages) -> None:
        """Copy a sink that was read before: its keys depend on nothing else."""
        pairs = [*zip(self.pages.keys, sink.keys, strict=True), *zip(self.pages.values, sink.values, strict=True)]
        for own, read in pairs:
            own[:, 0] = read[:, 0]
        for own, read in zip(self.pages.summaries, sink.summaries, strict=True):
            own[:, 0] = read[:, 0]
        self.pages.fill(0, PAGE)

    def _read_alone(self, numbers: list[int], sink: Pages) -> None:
        """Read a batch of documents that do not see each other."""
        chunk = max(self._reach // 2, 1)
        reader = SinkAndLocal(sink, self._reach - chunk)
        rows = [list(self._documents[number]) for number in numbers]
        starts = [self.layout.starts[number] for number in numbers]
        self._run(rows, starts, reader, sink, chunk)

    def _run(self, rows: list[list[int]], starts: list[int], reader: Reader, below: Pages | None, chunk: int) -> None:
        """Read documents as rows of one batch, and write what they left in the cache to their pages."""
        attachment, longest = self._attachment, max(map(len, rows))
        recording = Recording(reader) if self._selector.summary_size else None
        cache = ContextCache(len(attachment.shapes), recording or reader, attachment.window, below)
        # Padding stands on the right, where no real token can see it; any id will do.
        ids = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=self._device)
        real = torch.tensor([len(row) for row in rows])

        def report(done: int, new: int) -> None:
            if below is not None:  # the sink is not counted
                self._read(int((real.clamp(max=done) - real.clamp(max=done - new)).sum()))

        prefill(self._model, cache, ids, chunk, self._cancelled, report)
        at, lengths = torch.tensor(starts, device=self._device), real.to(self._device)
        for index, layer in enumerate(cache.layers):
            keys, values = layer.tail_keys.tokens, layer.tail_values.tokens
            self.pages.write(index, at, lengths, keys, values)
            if recording is not None:
                for row, (ids_of, start) in enumerate(zip(rows, starts, strict=True)):
                    n = len(ids_of)
                    query = torch.cat([q[row] for q in recording.queries[index]], 1)[:, :n]
                    summary = self._selector.summarise(
                        query,
                        keys[row, :, :n],
                        values[row, :, :n],
                        attachment.rotations[index],
                        attachment.scaling[index],
                    )
                    self.pages.summarise(index, start, summary)
        for ids_of, start in zip(rows, starts, strict=True):
            self.pages.fill(start, len(ids_of))
