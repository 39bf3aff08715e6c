"""Pages put together from runs of other pages; knows neither documents nor files.

An edit of a corpus takes some pages away, adds some and leaves the rest where they are. On a CPU the result is a list of
runs: nothing is copied, and pages mapped from disk stay there. A gather reads from the runs it meets; a scan of several
runs copies one layer's keys, for as long as it lasts. On a GPU the kernels want one tensor a layer, so the runs are copied
together once. Runs that are many and short, or that keep a mostly unused tensor alive, are copied together as well.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.pinned import pinned

MOST_RUNS = 64
"""More runs than this, and neighbours that are short are copied together."""


class Run(NamedTuple):
    """Pages first..stop-1 of some pages; documents lie whole within it."""

    pages: Pages
    first: int
    stop: int

    @property
    def n_pages(self) -> int:
        """How many pages."""
        return self.stop - self.first


def stitch(runs: Sequence[Run]) -> Pages:
    """Runs of pages, one behind another, as pages of their own.

    Args:
        runs: the first one begins with the sink's page.

    Returns:
        Pages on a CPU where one of the runs is in a lower tier, or all are there; else on the GPU where the others are.
        Runs that are all of some pages are those.
    """
    lower = any(run.pages.below is not None for run in runs)
    runs = _adjoined([part for run in runs for part in _flat(run)])
    whole = runs[0]
    if len(runs) == 1 and whole.n_pages == whole.pages.n_pages:
        return whole.pages
    there = [run.pages.filled.device for run in runs if run.pages.filled.device.type != "cpu"]
    if there and not lower:
        return _copied(runs, there[0])
    runs = [_on_cpu(run) for run in runs]
    runs = _thinned(_without_waste(runs))
    whole = runs[0]
    if len(runs) == 1 and whole.n_pages == whole.pages.n_pages:
        return whole.pages
    return StitchedPages(runs)


def underlying(pages: Pages) -> list[Pages]:
    """The pages that hold the memory of some pages: themselves, or what they are made of."""
    return [run.pages for run in _flat(Run(pages, 0, pages.n_pages))]


def _flat(run: Run) -> list[Run]:
    """A run of stitched or tiered pages as runs of what those are made of."""
    if run.pages.below is not None:
        return _flat(run._replace(pages=run.pages.below))
    if not isinstance(run.pages, StitchedPages):
        return [run] if run.n_pages else []
    found, at = [], 0
    for inner in run.pages.runs:
        first, stop = max(run.first - at, 0), min(run.stop - at, inner.n_pages)
        if first < stop:
            found.append(Run(inner.pages, inner.first + first, inner.first + stop))
        at += inner.n_pages
    return found


def _adjoined(runs: Sequence[Run]) -> list[Run]:
    """The same pages in as few runs as possible."""
    found = [runs[0]]
    for run in runs[1:]:
        last = found[-1]
        if run.pages is last.pages and run.first == last.stop:
            found[-1] = last._replace(stop=run.stop)
        else:
            found.append(run)
    return found


def _without_waste(runs: Sequence[Run]) -> list[Run]:
    """Copies what is left of pages in memory of which less than half is still used, so that the rest can be freed."""
    used: dict[int, int] = {}
    for run in runs:
        used[id(run.pages)] = used.get(id(run.pages), 0) + run.n_pages
    return [
        _apart([run]) if not run.pages.mapped and 2 * used[id(run.pages)] < run.pages.n_pages else run for run in runs
    ]


def _thinned(runs: Sequence[Run]) -> list[Run]:
    """Copies neighbouring short runs together where there are too many."""
    if len(runs) <= MOST_RUNS:
        return list(runs)
    short = sum(run.n_pages for run in runs) // (MOST_RUNS // 2)
    found: list[Run] = []
    group: list[Run] = []
    for run in [*runs, None]:
        if run is not None and run.n_pages <= short:
            group.append(run)
            continue
        found += [_apart(group)] if len(group) > 1 else group
        found += [] if run is None else [run]
        group = []
    return found


def _on_cpu(run: Run) -> Run:
    """A run as it is where it lies on a CPU, and copied there otherwise."""
    return run if run.pages.filled.device.type == "cpu" else _apart([run])


def _apart(runs: Sequence[Run]) -> Run:
    """Runs copied to memory of their own on the CPU, which a GPU may read if it might read theirs."""
    copied = _copied(runs, torch.device("cpu"))
    near = any(run.pages.pinned or run.pages.filled.is_cuda for run in runs)
    return _whole(pinned(copied) if near else copied)


def _whole(pages: Pages) -> Run:
    return Run(pages, 0, pages.n_pages)


def _copied(runs: Sequence[Run], device: torch.device) -> Pages:
    """Runs in tensors of their own on a device, one a layer."""
    return onto(StitchedPages(runs), device)


def onto(pages: Pages, device: torch.device) -> Pages:
    """Pages in tensors of their own on a device, one a layer, whatever they are made of.

    Args:
        pages: wherever they are.
        device: where they are wanted.
    """
    runs = pages.runs if isinstance(pages, StitchedPages) else (Run(pages, 0, pages.n_pages),)
    keys, values = [], []
    for layer in range(pages.n_layers):
        found: list[torch.Tensor] = []
        at = 0
        for run in runs:
            read = run.pages.read(layer, run.first, run.stop)
            # From a GPU, into memory that is there: having it come page by page while it is copied takes ten times as long.
            room = "new_zeros" if read[0].is_cuda and device.type == "cpu" else "new_empty"
            found = found or [getattr(t, room)(t.shape[0], pages.n_pages, *t.shape[2:], device=device) for t in read]
            for own, part in zip(found, read, strict=True):
                own[:, at : at + run.n_pages] = part
            at += run.n_pages
        keys.append(found[0])
        values.append(found[1])
    summaries = [summary.to(device) for summary in pages.summaries]
    return Pages(keys, values, pages.filled.to(device), pages.first.to(device), summaries, pages.summary_size)


def _tables(runs: Sequence[Run]) -> tuple[torch.Tensor, torch.Tensor]:
    """`filled` and `first` of the runs together, where the first run's are."""
    device = runs[0].pages.filled.device
    filled = torch.cat([run.pages.filled[run.first : run.stop].to(device) for run in runs])
    first, at = [], 0
    for run in runs:
        first.append(run.pages.first[run.first : run.stop].to(device) + (at - run.first))
        at += run.n_pages
    return filled, torch.cat(first)


def _summaries(runs: Sequence[Run]) -> list[torch.Tensor]:
    size = runs[0].pages.summary_size
    if not size:
        return []
    parts = []
    for run in runs:
        chunks = run.pages.chunks(size)
        parts.append((run.pages.summaries, slice(int(chunks[run.first]), int(chunks[run.stop - 1]) + 1)))
    n_layers = len(runs[0].pages.summaries)
    device = runs[0].pages.filled.device
    return [
        torch.cat([summaries[layer][:, part].to(device) for summaries, part in parts], 1) for layer in range(n_layers)
    ]


class StitchedPages(Pages):
    """Runs of other pages, on a CPU, read where they lie; those on several devices only to be copied.

    Args:
        runs: one behind another; the first begins with the sink's page.

    Attributes:
        runs: the same.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self._at = [0]
        for run in runs:
            self._at.append(self._at[-1] + run.n_pages)
        source = runs[0].pages
        super().__init__([], [], *_tables(runs), _summaries(runs), source.summary_size)
        self.keys, self.values = _Layers(self.runs, 0), _Layers(self.runs, 1)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.runs[0].pages.n_layers

    def groups(self, layer: int) -> int:
        """Key-value heads of a layer."""
        return self.runs[0].pages.groups(layer)

    @property
    def nbytes(self) -> int:
        """Exact bytes of keys, values, summaries and the page table, without what the runs' owners hold besides."""
        tables = (*self.summaries, self.filled, self.first)
        return sum(run.n_pages * run.pages.page_bytes for run in self.runs) + sum(t.nbytes for t in tables)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's keys and values in all layers."""
        return self.runs[0].pages.page_bytes

    def part(self, first: int, stop: int) -> Pages:
        """Some pages, of whole documents."""
        return StitchedPages(_flat(Run(self, first, stop)))

    def scan(self, layer: int) -> torch.Tensor:
        """All keys of a layer for scoring, [G, P, T, D]: a copy where there are several runs."""
        return _together([run.pages.scan_part(layer, run.first, run.stop) for run in self.runs])

    def scan_head(self, layer: int, group: int) -> torch.Tensor:
        """See `Pages.scan_head`: a copy where there are several runs, of this head's keys alone."""
        return _together([run.pages.scan_part(layer, run.first, run.stop, group) for run in self.runs])

    def owners(self, pages: torch.Tensor) -> list[tuple[Pages, torch.Tensor, torch.Tensor]]:
        """See `Pages.owners`."""
        whose = torch.bucketize(pages, torch.tensor(self._at[1:]), right=True)
        found = []
        for number in whose.unique().tolist() or [0]:
            run, where = self.runs[number], (whose == number).nonzero().squeeze(1)
            found.append((run.pages, pages[where] + (run.first - self._at[number]), where))
        return found

    def scan_values(self, layer: int, first: int, stop: int) -> torch.Tensor:
        """See `Pages.scan_values`: a copy where they lie in several runs."""
        runs = _flat(Run(self, first, stop))
        return _together([run.pages.scan_values(layer, run.first, run.stop) for run in runs])

    def take(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.take`."""
        found, order = [], []
        for owner, own, where in self.owners(pages):
            found.append(owner.take(layer, own))
            order.append(where)
        back = torch.cat(order).argsort()
        return _together([pair[0] for pair in found])[:, back], _together([pair[1] for pair in found])[:, back]

    def scan_part(self, layer: int, first: int, stop: int, group: int | None = None) -> torch.Tensor:
        """See `Pages.scan_part`: a copy where there are several runs."""
        runs = _flat(Run(self, first, stop))
        return _together([run.pages.scan_part(layer, run.first, run.stop, group) for run in runs])

    def read(self, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of pages first..stop-1, [G, n, T, D] each: a copy where there are several runs."""
        found = [run.pages.read(layer, run.first, run.stop) for run in _flat(Run(self, first, stop))]
        return _together([pair[0] for pair in found]), _together([pair[1] for pair in found])

    def gather(self, layer: int, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at some addresses, [G, *addresses.shape, D] each, in the pages' type."""
        return self._gathered(addresses, lambda run, own, _: run.pages.gather(layer, own), 1)

    def gather_per_head(
        self, layer: int, group: torch.Tensor, addresses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.gather_per_head`."""
        groups = group.expand_as(addresses)
        return self._gathered(
            addresses, lambda run, own, inside: run.pages.gather_per_head(layer, groups[inside], own), 0
        )

    def _gathered(
        self,
        addresses: torch.Tensor,
        read: Callable[[Run, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        leading: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values from the runs that addresses meet.

        Args:
            addresses: of any shape.
            read: keys and values [*, n, D] of n addresses of one run's own; where they stand among all is passed too.
            leading: dimensions of the result before those of the addresses.
        """
        whose = torch.bucketize(addresses, torch.tensor(self._at[1:]) * PAGE, right=True)
        met = whose.unique().tolist() or [0]
        out: tuple[torch.Tensor, torch.Tensor] | None = None
        for number in met:
            run, inside = self.runs[number], whose == number
            own = addresses[inside] + (run.first - self._at[number]) * PAGE
            found = read(run, own, inside)
            if out is None:
                shapes = [(*t.shape[:leading], *addresses.shape, t.shape[-1]) for t in found]
                out = found[0].new_empty(shapes[0]), found[1].new_empty(shapes[1])
            where = (slice(None),) * leading + (inside,)
            out[0][where], out[1][where] = found
        assert out is not None
        return out


class _Layers(Sequence[torch.Tensor]):
    """Keys (0) or values (1) by layer [G, P, T, D], put together when they are asked for."""

    def __init__(self, runs: Sequence[Run], which: int) -> None:
        self._runs, self._which = runs, which

    def __len__(self) -> int:
        return self._runs[0].pages.n_layers

    def __getitem__(self, layer: int) -> torch.Tensor:  # type: ignore[override]
        if not 0 <= layer < len(self):
            raise IndexError(layer)
        return _together([run.pages.read(layer, run.first, run.stop)[self._which] for run in self._runs])


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Parts [G, n, T, D] as one, without a copy where there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
