"""Pages that lie on disk, held against their checksums when they are first read; knows no texts and no corpus.

A page's sum is that of its 64-bit words, each times an odd number of its own, modulo 2^64: it differs whenever one word does,
numpy sums at the speed of memory, and one page can be checked without the others. It finds damage, not tampering. What has
been read once is not checked again: a file that another program changes in place under a running process is not noticed (and
one that it cuts short ends the process, as with every mapped file).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.stitched import Run, StitchedPages
from reattention_core.errors import CorruptCacheError


def page_sums(pages: torch.Tensor) -> torch.Tensor:
    """The checksum of every page.

    Args:
        pages: [G, n, T, D], on a CPU.

    Returns:
        [n] int64.
    """
    words = pages.contiguous().flatten(2).view(torch.int64).numpy()
    factors = _factors(words.shape[0], words.shape[2])
    sums = np.zeros(words.shape[1], dtype=np.int64)
    for group, own in zip(words, factors, strict=True):  # one after another, as they lie in the file
        sums += np.einsum("nw,w->n", group, own)
    return torch.from_numpy(sums)


@lru_cache(maxsize=8)
def _factors(groups: int, words: int) -> np.ndarray:
    """Odd numbers [G, W], well mixed (the finalizer of splitmix64)."""
    x = np.arange(1, groups * words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) | np.uint64(1)
    return x.view(np.int64).reshape(groups, words)


class MappedPages(Pages):
    """Pages of one pack.

    Args:
        keys: as for `Pages`, mapped.
        values: likewise.
        filled: as for `Pages`.
        first: likewise.
        summaries: likewise, in memory.
        summary_size: likewise.
        sums: [2, L, P] int64, checksums of keys and of values.
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
        sums: torch.Tensor,
        where: str,
    ) -> None:
        super().__init__(keys, values, filled, first, summaries, summary_size)
        self._sums, self._where = sums, where
        self._checked = torch.zeros_like(sums, dtype=torch.bool)

    def part(self, first: int, stop: int) -> Pages:
        """Some pages, of whole documents."""
        return StitchedPages([Run(self, first, stop)])

    def read(self, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Pages.read`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check_range(0, layer, first, stop)
        self._check_range(1, layer, first, stop)
        return super().read(layer, first, stop)

    def scan_part(self, layer: int, first: int, stop: int) -> torch.Tensor:
        """See `Pages.scan_part`.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._check_range(0, layer, first, stop)
        return super().scan_part(layer, first, stop)

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
        """Read pages first..stop-1 of all layers from disk and hold them against their sums, checked before or not.

        Raises:
            CorruptCacheError: a page is not what was written.
        """
        self._checked[:, :, first:stop] = False
        for layer in range(self.n_layers):
            self.read(layer, first, stop)

    def _check_range(self, which: int, layer: int, first: int, stop: int) -> None:
        checked = self._checked[which, layer, first:stop]
        if not bool(checked.all()):
            tensor = (self.keys, self.values)[which][layer][:, first:stop]
            self._compare(page_sums(tensor), which, layer, torch.arange(first, stop))
            checked.fill_(True)

    def _check_met(self, layer: int, addresses: torch.Tensor) -> None:
        """Check the pages of some addresses that were not checked yet."""
        checked = self._checked[:, layer]
        if bool(checked.all()):
            return
        met = torch.zeros(self.n_pages, dtype=torch.bool)
        met[addresses.flatten() // PAGE] = True
        for which, tensors in enumerate((self.keys, self.values)):
            pages = (met & ~checked[which]).nonzero().squeeze(1)
            if len(pages):
                self._compare(page_sums(tensors[layer][:, pages]), which, layer, pages)
                checked[which, pages] = True

    def _compare(self, sums: torch.Tensor, which: int, layer: int, pages: torch.Tensor) -> None:
        wrong = pages[sums != self._sums[which, layer, pages]]
        if len(wrong):
            what = f"{('keys', 'values')[which]} of layer {layer}, page {int(wrong[0])}"
            raise CorruptCacheError(
                f"{self._where} is damaged: {what} ({len(wrong):,} pages differ from their checksums); ingest the "
                "corpus again with replace=True (--replace), which reads anew what is damaged"
            )
