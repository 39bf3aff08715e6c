"""Pages of lower tiers that questions read, where the model runs; knows no rule, and not why they are wanted.

A stage is an ordinary `Pages` of a fixed size, so attention and recorded passes run over it as over any other. What is wanted
is copied to its places layer by layer, on a stream of its own: a layer waits for its own copies alone, and the next layer's
travel while it computes. What lies there stays until its place is needed, and is not copied again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from reattention_core.cache.pages import Pages
from reattention_kernels import copy_pages

if TYPE_CHECKING:
    from reattention_core.cache.tiered import TieredPages

STEP = 256
"""The stage grows by a multiple of this many pages."""


class Stage:
    """Places for pages of all corpora of an engine in lower tiers. For who has the model (`Engine.busy`).

    Args:
        device: where the model runs.

    Attributes:
        hits: pages that were wanted and lay there.
        misses: pages that had to be copied.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.hits, self.misses = device, 0, 0
        self._pages: StagedPages | None = None
        # Of (corpus, page), least recently wanted first.
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._free: list[int] = []
        self._sink_of: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return 0 if self._pages is None else self._pages.nbytes

    def bring(self, corpus: "TieredPages", wanted: Sequence[int]) -> tuple[Pages, dict[int, int]]:
        """Pages of a corpus into the stage.

        Args:
            corpus: in a lower tier.
            wanted: page numbers, no two alike.

        Returns:
            The stage's pages, whose first one is the corpus's sink, and the place of every page that was wanted.
        """
        wanted = [page for page in wanted if page]
        if self._pages is None or len(wanted) >= self._pages.n_pages:
            self._begin(corpus.below, 1 + len(wanted))
        stage, places, missing = self._pages, self._places, list[int]()
        assert stage is not None
        for page in wanted:
            if (corpus.number, page) in places:
                places.move_to_end((corpus.number, page))
            else:
                missing.append(page)
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        for page in missing:
            # What goes was not wanted now: there are more places than pages wanted, and those stand last.
            place = self._free.pop() if self._free else places.popitem(last=False)[1]
            places[corpus.number, page] = place
        if self._sink_of != corpus.number:
            missing.append(0)
            self._sink_of = corpus.number
        found = {0: 0, **{page: places[corpus.number, page] for page in wanted}}
        try:
            if missing:
                stage.bring(corpus.below, torch.tensor(missing), torch.tensor([found[page] for page in missing]))
        except BaseException:  # a damaged file, or no memory: what may be half there must not be taken for whole
            self._sink_of = None
            self._free += [places.pop((corpus.number, page)) for page in missing if page]
            raise
        return stage, found

    def _begin(self, like: Pages, room: int) -> None:
        """New places, all of them free."""
        if self._pages is not None:
            for layer in range(self._pages.n_layers):
                self._pages.arrive(layer)  # its memory is free only then
        self._pages = None
        self._places.clear()
        self._sink_of = None
        room = -(-room // STEP) * STEP
        read = [like.read(layer, 0, 1) for layer in range(like.n_layers)]
        keys, values = (
            [pair[n].new_zeros(pair[n].shape[0], room, *pair[n].shape[2:], device=self.device) for pair in read]
            for n in range(2)
        )
        filled, first = torch.zeros(2, room, dtype=torch.int64, device=self.device)
        self._pages = StagedPages(keys, values, filled, first)
        self._free = list(range(room - 1, 0, -1))


class _Part(NamedTuple):
    """Pages that lie in one piece of memory.

    Attributes:
        below: whose they are.
        pages: their numbers there [n], on the host.
        numbers: the same where the stage is.
        places: theirs in the stage [n].
    """

    below: Pages
    pages: torch.Tensor
    numbers: torch.Tensor
    places: torch.Tensor


class StagedPages(Pages):
    """The stage's pages, some layers of which may still be on their way; arguments as for `Pages`."""

    def __init__(
        self,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        filled: torch.Tensor,
        first: torch.Tensor,
    ) -> None:
        super().__init__(keys, values, filled, first)
        self._aside = torch.cuda.Stream(filled.device) if filled.is_cuda else None
        self._coming: dict[int, torch.cuda.Event] = {}

    def bring(self, below: Pages, pages: torch.Tensor, places: torch.Tensor) -> None:
        """Copy some pages [n] of others, on the host, to places [n]; from pinned memory without waiting for it."""
        device = self.filled.device
        places = places.to(device)
        self.filled[places] = below.filled[pages].to(device)
        parts = [
            _Part(owner, own, own.to(device), places[where.to(device)]) for owner, own, where in below.owners(pages)
        ]
        if self._aside is None:
            for layer in range(self.n_layers):
                self._copy(layer, parts)
            return
        # What is being read must not be written over, and what the copies read must not be freed before them.
        self._aside.wait_stream(torch.cuda.current_stream(device))
        for part in parts:
            part.numbers.record_stream(self._aside)
            part.places.record_stream(self._aside)
        with torch.cuda.stream(self._aside):
            for layer in range(self.n_layers):
                self._copy(layer, parts)
                self._coming[layer] = self._aside.record_event()

    def _copy(self, layer: int, parts: "Sequence[_Part]") -> None:
        """One layer of `bring`."""
        for below, pages, numbers, places in parts:
            if below.pinned:
                copy_pages(self.keys[layer], places, below.keys[layer], numbers)
                copy_pages(self.values[layer], places, below.values[layer], numbers)
                continue
            for own, found in zip((self.keys[layer], self.values[layer]), below.take(layer, pages), strict=True):
                own[:, places] = found.to(own.device)

    def arrive(self, layer: int) -> None:
        """See `Pages.arrive`."""
        event = self._coming.pop(layer, None)
        if event is not None:
            torch.cuda.current_stream(self.filled.device).wait_event(event)
