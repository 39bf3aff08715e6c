"""Un-rotated keys and values of a corpus in pages of 32 tokens; knows neither documents' texts nor who reads them.

A page belongs to one document, so its last page may hold fewer tokens. Every token has an address, page * 32 + slot;
reading order is rising address. Pages are written once, during ingest, and only read afterwards: any number of
questions share them without a copy. Where the bytes lie is decided here and nowhere else: readers ask for `scan` (keys of
a layer or of one of its heads, to score them) and `gather` (keys and values of some addresses, to attend to them).
"""

from collections.abc import Sequence

import torch

from reattention_kernels import KeyIndex, write_pages

PAGE = 32
"""Tokens in a page: the span that ReAttention grows a hit to (arXiv 2407.15176)."""


def pages_for(n_tokens: int) -> int:
    """How many pages hold `n_tokens` of one document."""
    return -(-n_tokens // PAGE)


class Pages:
    """Keys and values of all layers, each [G, P, T, D], and the table of their pages.

    Args:
        keys: one tensor [G, P, T, D] a layer, un-rotated.
        values: one tensor [G, P, T, D] a layer.
        filled: [P] int64 on the same device, filled slots of every page.
        first: [P] int64, the first page of the document that each page belongs to.
        summaries: one tensor [H, C, D] a layer for selectors that need them (`Selector.summarise`), or nothing.
        summary_size: tokens that each of the C chunks holds at most, a multiple of T.

    Attributes:
        mapped: whether the tensors lie on disk and come into memory page by page.
        pinned: whether a GPU can read the tensors where they lie on the host.
        below: the pages on the host that hold keys and values, where only the tables are here (`TieredPages`).
    """

    mapped = False
    pinned = False
    below: "Pages | None" = None

    def __init__(
        self,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        filled: torch.Tensor,
        first: torch.Tensor,
        summaries: Sequence[torch.Tensor] = (),
        summary_size: int = 0,
    ) -> None:
        self.keys: Sequence[torch.Tensor] = list(keys)
        self.values: Sequence[torch.Tensor] = list(values)
        self.filled, self.first = filled, first
        self.summaries, self.summary_size = list(summaries), summary_size
        self._addresses: torch.Tensor | None = None

    @classmethod
    def allocate(
        cls,
        shapes: Sequence[tuple[int, int, int]],
        first: torch.Tensor,
        filled: torch.Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Pages":
        """Room for pages in layers of the given (G, key D, value D); `first` and `filled` [P] as above.

        How full a page will be is known before it is written, so nobody need say when it was.
        """
        n_pages = len(first)
        return cls(
            [torch.zeros(g, n_pages, PAGE, d, dtype=dtype, device=device) for g, d, _ in shapes],
            [torch.zeros(g, n_pages, PAGE, d, dtype=dtype, device=device) for g, _, d in shapes],
            filled.to(device),
            first.to(device),
        )

    def reserve_summaries(self, shapes: Sequence[tuple[int, int]], size: int) -> None:
        """Make room for summaries of chunks of `size` tokens, for layers of the given (H, D)."""
        count = int(self.chunks(size)[-1]) + 1
        like = self.keys[0]
        self.summaries = [like.new_zeros(heads, count, dim) for heads, dim in shapes]
        self.summary_size = size

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.keys)

    def groups(self, layer: int) -> int:
        """Key-value heads of a layer."""
        return self.keys[layer].shape[0]

    @property
    def n_pages(self) -> int:
        """Pages there is room for."""
        return self.filled.shape[0]

    @property
    def n_slots(self) -> int:
        """Addresses run from 0 to this number."""
        return self.n_pages * PAGE

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's keys and values in all layers."""
        return sum(t.nbytes for t in (*self.keys, *self.values)) // max(self.n_pages, 1)

    @property
    def nbytes(self) -> int:
        """Exact bytes of keys, values, summaries and the page table."""
        tables = (self.filled, self.first)
        return sum(t.nbytes for t in (*self.keys, *self.values, *self.summaries, *tables))

    def chunks(self, size: int) -> torch.Tensor:
        """Number of the chunk of `size` tokens (whole pages) that each page lies in, [P] int64.

        Chunks are counted from the start of each document and never span two.
        """
        within = (torch.arange(self.n_pages, device=self.first.device) - self.first) // (size // PAGE)
        starts = torch.ones_like(within, dtype=torch.bool)
        starts[1:] = (within[1:] != within[:-1]) | (self.first[1:] != self.first[:-1])
        return starts.cumsum(0) - 1

    @property
    def addresses(self) -> torch.Tensor:
        """Addresses of all tokens in reading order, [N] int64."""
        if self._addresses is None:
            slot = torch.arange(PAGE, device=self.filled.device)
            self._addresses = (slot < self.filled[:, None]).flatten().nonzero().squeeze(1)
        return self._addresses

    def addresses_of(self, pages: torch.Tensor) -> torch.Tensor:
        """Addresses of the tokens in some pages, in reading order of the given pages, [n] int64."""
        slot = torch.arange(PAGE, device=pages.device)
        inside = slot < self.filled[pages][:, None]
        return (pages[:, None] * PAGE + slot)[inside]

    def write(
        self, layer: int, starts: torch.Tensor, lengths: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store documents, the rows of a batch, each from the first slot of a page on.

        Args:
            layer: which layer's pages.
            starts: [B] int64, address of each document's first token; the caller keeps documents from sharing a page.
            lengths: [B] int64, tokens of each document; what stands behind them is padding.
            key: [B, G, n, D], un-rotated; converted to the pages' type.
            value: [B, G, n, D].
        """
        write_pages(self.keys[layer], self.values[layer], key, value, starts, lengths)

    def summarise(self, layer: int, start: int, summary: torch.Tensor) -> None:
        """Store the summaries [H, c, D] of the chunks of a document that starts at address `start`."""
        first = int(self.chunks(self.summary_size)[start // PAGE])
        self.summaries[layer][:, first : first + summary.shape[1]] = summary

    def begin_with(self, other: "Pages") -> None:
        """Copy the first page of another corpus, with its summary, to the beginning of this one."""
        for own, given in zip(
            (*self.keys, *self.values, *self.summaries), (*other.keys, *other.values, *other.summaries), strict=True
        ):
            own[:, :1] = given[:, :1]

    def hold(self, first: int, other: "Pages") -> None:
        """Copy all pages of another corpus but its sink, with their summaries, to pages first.. of this one."""
        many = other.n_pages - 1
        for ours, others in ((self.keys, other.keys), (self.values, other.values)):
            for own, given in zip(ours, others, strict=True):  # a layer at a time, which may have to be put together
                for head, read in zip(own, given, strict=True):  # one piece of memory each, which a GPU copies as such
                    head[first : first + many] = read[1:]
        if self.summaries:
            chunk = int(self.chunks(self.summary_size)[first])
            for own, given in zip(self.summaries, other.summaries, strict=True):
                own[:, chunk : chunk + given.shape[1] - 1] = given[:, 1:]

    def before(self, page: int) -> "Pages":
        """The pages before one, as views of the same storage."""
        return self.part(0, page)

    def part(self, first: int, stop: int) -> "Pages":
        """Pages first..stop-1, of whole documents, as views of the same storage."""
        summaries = []
        if self.summaries:
            chunks = self.chunks(self.summary_size)
            own = slice(int(chunks[first]), int(chunks[stop - 1]) + 1)
            summaries = [s[:, own] for s in self.summaries]
        return Pages(
            [k[:, first:stop] for k in self.keys],
            [v[:, first:stop] for v in self.values],
            self.filled[first:stop],
            self.first[first:stop] - first,
            summaries,
            self.summary_size,
        )

    def read(self, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of pages first..stop-1, [G, n, T, D] each, as views of the same storage."""
        return self.keys[layer][:, first:stop], self.values[layer][:, first:stop]

    def scan(self, layer: int) -> torch.Tensor:
        """All keys of a layer for scoring, [G, P, T, D]; slots beyond `filled` hold nothing."""
        return self.scan_part(layer, 0, self.n_pages)

    def scan_part(self, layer: int, first: int, stop: int, group: int | None = None) -> torch.Tensor:
        """Keys of pages first..stop-1 alone, [G, n, T, D]; of one key-value head [1, n, T, D]."""
        heads = slice(None) if group is None else slice(group, group + 1)
        return self.keys[layer][heads, first:stop]

    def scan_head(self, layer: int, group: int) -> torch.Tensor | KeyIndex:
        """Keys of one key-value head for scoring, [1, P, T, D], or their 8-bit index."""
        return self.scan_part(layer, 0, self.n_pages, group)

    def scan_values(self, layer: int, first: int, stop: int) -> torch.Tensor:
        """Values of pages first..stop-1 where the model runs, [G, n, T, D], to compare them."""
        return self.values[layer][:, first:stop]

    def staged(self, rows: Sequence[torch.Tensor]) -> tuple["Pages", Sequence[torch.Tensor]]:
        """The sink and some pages where the model runs, and the rows as numbers of pages there.

        Args:
            rows: page numbers [n] int64, on a CPU.

        Returns:
            Pages that hold them until the next call, and their numbers; the sink is number 0. These pages themselves where
            keys and values lie with their tables.
        """
        return self, rows

    def arrive(self, layer: int) -> None:
        """Called before a layer's keys and values are read: whoever still brings them makes the device wait here."""

    def owners(self, pages: torch.Tensor) -> "list[tuple[Pages, torch.Tensor, torch.Tensor]]":
        """Who holds the memory of some pages [n]: whose, their numbers [k] there, and which of the n they are [k]."""
        return [(self, pages, torch.arange(len(pages), device=pages.device))]

    def take(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the keys and values of some pages [n], [G, n, T, D] each, in the pages' type."""
        return self.keys[layer][:, pages], self.values[layer][:, pages]

    def gather(self, layer: int, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at some addresses, [G, *addresses.shape, D] each, in the pages' type."""
        key, value = self.keys[layer].flatten(1, 2), self.values[layer].flatten(1, 2)
        return key[:, addresses], value[:, addresses]

    def gather_per_head(
        self, layer: int, group: torch.Tensor, addresses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at addresses of their own for every head.

        Args:
            layer: which layer's pages.
            group: [H, 1, 1] int64, the key-value head that each query head reads.
            addresses: [H, Q, n] int64.

        Returns:
            [H, Q, n, D] each, in the pages' type.
        """
        key, value = self.keys[layer].flatten(1, 2), self.values[layer].flatten(1, 2)
        return key[group, addresses], value[group, addresses]
