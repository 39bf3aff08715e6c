"""Pages that lie on disk, held against their checksums when they are first read; knows no texts and no corpus.

One sum (XXH3, 64 bits) stands for 16 pages of one key-value head, which lie side by side in the file: 64 KiB of the bundled
model, what Linux maps at once as well. So a page is read with its neighbours, a head without the others, and the sums of a
million tokens take 3 MB. A sum finds damage, not tampering. What has been read once is not checked again: a file that
another program changes in place under a running process is not noticed (and one that it cuts short ends the process, as with
every mapped file).
"""

import ctypes
import mmap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from xxhash import xxh3_64_intdigest

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.stitched import Run, StitchedPages
from reattention_core.errors import CorruptCacheError

BLOCK = 16
"""Pages that one sum stands for: fewer are slow to sum up, more are read for the sake of one."""


def blocks_for(n_pages: int) -> int:
    """How many sums there are for each head of a layer."""
    return -(-n_pages // BLOCK)


def block_sums(pages: torch.Tensor) -> torch.Tensor:
    """The checksums of a layer's keys or values.

    Args:
        pages: [G, P, T, D], on a CPU.

    Returns:
        [G, C] int64.
    """
    blocks = np.arange(blocks_for(pages.shape[1]))
    found = np.stack([_sums(head, blocks) for head in pages.contiguous()])
    return torch.from_numpy(found.view(np.int64))


def _sums(head: torch.Tensor, blocks: np.ndarray) -> np.ndarray:
    """The sums of some blocks of a head's pages [P, T, D]."""
    data = memoryview(head.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
    size = BLOCK * head[0].nbytes
    return np.array([xxh3_64_intdigest(data[at : at + size]) for at in (blocks * size).tolist()], dtype=np.uint64)


def _ask_for(head: torch.Tensor, blocks: np.ndarray) -> None:
    """Have the kernel fetch some blocks of a head's mapped pages [P, T, D], just those and at once; it may decline."""
    begin, size = head.data_ptr(), BLOCK * head[0].nbytes
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1):
        start = begin + int(run[0]) * size
        stop = min(start + len(run) * size, begin + head.nbytes)
        aligned = start - start % mmap.PAGESIZE
        _madvise()(ctypes.c_void_p(aligned), ctypes.c_size_t(stop - aligned), mmap.MADV_WILLNEED)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise


class MappedPages(Pages):
    """Pages of one pack.

    Args:
        keys: as for `Pages`, mapped.
        values: likewise.
        filled: as for `Pages`.
        first: likewise.
        summaries: likewise, in memory.
        summary_size: likewise.
        sums: for each layer [2, G, C] int64, checksums of keys and of values.
        where: names the file in errors.
    """

    mapped = True

    def __init__(
        self,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        filled: torch.Tensor,
        first: torch.Tensor,
        summaries: Sequence[torch.Tensor],
        summary_size: int,
        sums: Sequence[torch.Tensor],
        where: str,
    ) -> None:
        super().__init__(keys, values, filled, first, summaries, summary_size)
        self._sums, self._where = [layer.numpy().view(np.uint64) for layer in sums], where
        self._checked = [np.zeros(layer.shape, dtype=bool) for layer in self._sums]

    def part(self, first: int, stop: int) -> Pages:
        """Some pages, of whole documents."""
        return StitchedPages([Run(self, first, stop)])

    def read(self, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.read`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check(layer, (0, 1), np.arange(first // BLOCK, blocks_for(stop)))
        return super().read(layer, first, stop)

    def scan_part(self, layer: int, first: int, stop: int, group: int | None = None) -> torch.Tensor:
        """See `Pages.scan_part`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check(layer, (0,), np.arange(first // BLOCK, blocks_for(stop)), group)
        return super().scan_part(layer, first, stop, group)

    def scan_values(self, layer: int, first: int, stop: int) -> torch.Tensor:
        """See `Pages.scan_values`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check(layer, (1,), np.arange(first // BLOCK, blocks_for(stop)))
        return super().scan_values(layer, first, stop)

    def take(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.take`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check_met(layer, pages * PAGE)
        return super().take(layer, pages)

    def gather(self, layer: int, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.gather`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check_met(layer, addresses)
        return super().gather(layer, addresses)

    def gather_per_head(
        self, layer: int, group: torch.Tensor, addresses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.gather_per_head`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check_met(layer, addresses)
        return super().gather_per_head(layer, group, addresses)

    def check(self, first: int, stop: int) -> None:
        """Hold pages first..stop-1 of all layers against their sums.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        for layer in range(self.n_layers):
            self.read(layer, first, stop)

    def expect(self, first: int, stop: int) -> None:
        """Have pages first..stop-1 of all layers fetched from disk, without waiting for them."""
        for layer in range(self.n_layers):
            self._ask_for(layer, np.arange(first // BLOCK, blocks_for(stop)))

    def _check_met(self, layer: int, addresses: torch.Tensor) -> None:
        """Check the pages of some addresses."""
        if not self._checked[layer].all():
            blocks = np.unique(addresses.numpy() // (PAGE * BLOCK))
            self._ask_for(layer, blocks)  # scattered: the disk fetches them together, and not what lies around each
            self._check(layer, (0, 1), blocks)

    def _ask_for(self, layer: int, blocks: np.ndarray) -> None:
        for which, head, unknown in self._unknown(layer, (0, 1), blocks):
            _ask_for((self.keys, self.values)[which][layer][head], unknown)

    def _unknown(
        self, layer: int, kinds: Sequence[int], blocks: np.ndarray, group: int | None = None
    ) -> list[tuple[int, int, np.ndarray]]:
        """Which of some blocks were not checked yet: of keys (0) and values (1), for each head or for one."""
        checked = self._checked[layer]
        heads = range(len(checked[0])) if group is None else (group,)
        found = [(which, head, blocks[~checked[which, head, blocks]]) for which in kinds for head in heads]
        return [one for one in found if len(one[2])]

    def _check(self, layer: int, kinds: Sequence[int], blocks: np.ndarray, group: int | None = None) -> None:
        """Check the blocks that were not checked yet; arguments as for `_unknown`."""
        wrong: list[tuple[int, int, int]] = []
        for which, head, unknown in self._unknown(layer, kinds, blocks, group):
            found = _sums((self.keys, self.values)[which][layer][head], unknown)
            right = found == self._sums[layer][which, head, unknown]
            self._checked[layer][which, head, unknown[right]] = True
            wrong += [(which, head, at) for at in (unknown[~right] * BLOCK).tolist()]
        if wrong:
            which, head, at = wrong[0]
            last = min(at + BLOCK, self.n_pages) - 1
            what = f"{('keys', 'values')[which]} of layer {layer}, head {head}, pages {at} to {last}"
            raise CorruptCacheError(
                f"{self._where} is damaged: {what} ({len(wrong):,} parts of the layer differ from their checksums); ingest "
                "the corpus again with replace=True (--replace), which reads anew what is damaged"
            )
