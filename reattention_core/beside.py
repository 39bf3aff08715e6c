"""What is put together with documents that are about to be read: the rest of their corpus; knows no budgets and no files."""

from collections.abc import Callable
from dataclasses import dataclass

from reattention_core.cache.pages import Pages


@dataclass
class Beside:
    """The rest of a corpus, until all of it is put together.

    Where a model runs on a GPU a corpus in several pieces is copied to one, and exists twice for that time.

    Attributes:
        nbytes: keys and values of it.
        replaced: bytes on the device that are let go once the whole is there.
        below: whether it lies in a lower tier, so that the whole will.
        lower: has it go down a tier; False where there is no place for it.
        settled: whether it is known that the whole has room.
    """

    nbytes: int
    replaced: int = 0
    below: bool = False
    lower: Callable[[], bool] = lambda: True
    settled: bool = False

    @classmethod
    def kept(cls, pages: Pages, n_pages: int, lower: Callable[[], bool]) -> "Beside":
        """So many pages of a corpus that is edited."""
        below = pages.below is not None
        return cls(n_pages * pages.page_bytes, 0 if below else pages.nbytes, below, lower)

    def go_down(self) -> bool:
        """Have it lie in a lower tier; False where it cannot."""
        self.below = self.below or self.lower()
        return self.below
