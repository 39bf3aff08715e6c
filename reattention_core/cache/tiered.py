"""Pages of a corpus that is larger than its place where the model runs; knows no budgets and no rule.

Keys and values lie below, on the host: in memory or mapped from disk. Where the model runs are the tables of pages and an index
in 8 bits: keys of the heads and values of the layers that recall has read, which is all that finding pages needs. The few pages
that a question reads are brought to a stage. A rule that scores every layer's keys works, too: each layer is copied for as long
as it is scored, which takes its time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import torch

from reattention_core.cache.pages import Pages
from reattention_core.cache.stage import Stage
from reattention_core.cache.stitched import onto, underlying
from reattention_kernels import KeyIndex, indexed

AT_ONCE = 8192
"""Pages whose keys are turned into 8 bits at a time."""

_numbers = count()


class TieredPages(Pages):
    """Pages on the host with an index where the model runs.

    Args:
        below: keys and values, on a CPU; not tiered themselves.
        stage: where pages are brought.

    Attributes:
        number: no other has it.
    """

    below: Pages

    def __init__(self, below: Pages, stage: Stage) -> None:
        device = stage.device
        summaries = [summary.to(device) for summary in below.summaries]
        super().__init__([], [], below.filled.to(device), below.first.to(device), summaries, below.summary_size)
        self.keys, self.values = below.keys, below.values
        self.below, self.number, self._stage = below, next(_numbers), stage
        self._index: dict[tuple[int, int], KeyIndex] = {}
        self._values: dict[int, KeyIndex] = {}
        self._sink: Pages | None = None

    def over(self, below: Pages) -> "TieredPages":
        """Other pages in the same way."""
        return TieredPages(below, self._stage)

    @property
    def tier(self) -> str:
        """Where keys and values are: "host", or "disk" where all of them are mapped."""
        return "disk" if all(pages.mapped for pages in underlying(self)) else "host"

    def groups(self, layer: int) -> int:
        """Key-value heads of a layer."""
        return self.below.groups(layer)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's keys and values in all layers."""
        return self.below.page_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values below, and of what is held of them where the model runs."""
        return self.below.nbytes + self.index_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes where the model runs: index, tables, summaries and the sink."""
        index = [part for one in (*self._index.values(), *self._values.values()) for part in one]
        sink = 0 if self._sink is None else self._sink.nbytes
        return sink + sum(t.nbytes for t in (*index, *self.summaries, self.filled, self.first))

    def staged(self, rows: Sequence[torch.Tensor]) -> tuple[Pages, Sequence[torch.Tensor]]:
        """See `Pages.staged`."""
        wanted = torch.cat([*rows, torch.zeros(1, dtype=torch.int64)]).unique().tolist()
        stage, places = self._stage.bring(self, wanted)
        return stage, [torch.tensor([places[page] for page in row.tolist()], dtype=torch.int64) for row in rows]

    def scan_head(self, layer: int, group: int) -> KeyIndex:
        """See `Pages.scan_head`: the index, made when it is first asked for."""
        found = self._index.get((layer, group))
        if found is None:
            found = self._index[layer, group] = self._indexed(partial(self.below.scan_part, layer, group=group))
        return found

    def scan_values(self, layer: int, first: int, stop: int) -> torch.Tensor:
        """See `Pages.scan_values`: out of an index, made when it is first asked for."""
        found = self._values.get(layer)
        if found is None:
            found = self._values[layer] = self._indexed(partial(self.below.scan_values, layer))
        return found.codes[:, first:stop] * found.scale[:, first:stop, None, None]

    def _indexed(self, scanned: Callable[[int, int], torch.Tensor]) -> KeyIndex:
        """The index of what `scanned` gives of pages first..stop-1."""
        stops = [min(at + AT_ONCE, self.n_pages) for at in range(0, self.n_pages, AT_ONCE)]
        parts = [
            indexed(scanned(at, stop).to(self._stage.device)) for at, stop in zip([0, *stops], stops, strict=False)
        ]
        return KeyIndex(torch.cat([part.codes for part in parts], 1), torch.cat([part.scale for part in parts], 1))

    def scan_part(self, layer: int, first: int, stop: int, group: int | None = None) -> torch.Tensor:
        """See `Pages.scan_part`: a copy for as long as it is used."""
        return self.below.scan_part(layer, first, stop, group).to(self._stage.device)

    def read(self, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of pages first..stop-1, [G, n, T, D] each, on the host."""
        return self.below.read(layer, first, stop)

    def part(self, first: int, stop: int) -> Pages:
        """Some pages, of whole documents: the sink alone where the model runs, others in the same way as these."""
        if (first, stop) != (0, 1):
            return self.over(self.below.part(first, stop))
        if self._sink is None:
            self._sink = onto(self.below.part(0, 1), self._stage.device)
        return self._sink

    def gather(self, layer: int, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.gather`: gathered on the host, then copied."""
        key, value = self.below.gather(layer, addresses.cpu())
        return key.to(self._stage.device), value.to(self._stage.device)

    def gather_per_head(
        self, layer: int, group: torch.Tensor, addresses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.gather_per_head`: gathered on the host, then copied."""
        key, value = self.below.gather_per_head(layer, group.cpu(), addresses.cpu())
        return key.to(self._stage.device), value.to(self._stage.device)
