"""Which pages a window is made of and where each begins in it; knows no keys and no queries."""

from typing import NamedTuple

import torch
from torch.nn.functional import pad


class PageTable(NamedTuple):
    """The selected pages of a window in reading order; built once for a selection and read by every layer.

    Attributes:
        pages: [n] int32 for all key-value heads, or [G, n] with pages of its own for each, or [B, G or 1, n] with pages of its
            own for each row of the batch, too; -1 is padding.
        starts: like `pages`, the window position of each entry's first token; an entry ends where the next one starts.
        total: [1], [G] or [B, G or 1] int32, tokens in all entries.
    """

    pages: torch.Tensor
    starts: torch.Tensor
    total: torch.Tensor

    def steps(self, each: int) -> tuple[int, int]:
        """Numbers from one row of the batch to the next and from one key-value head to the next; 0 where they share theirs.

        Args:
            each: numbers of one head.
        """
        rows, heads = (1, 1, *self.pages.shape[:-1])[-2:]
        return (heads * each if rows > 1 else 0), (each if heads > 1 else 0)

    def widened(self, entries: int) -> "PageTable":
        """The same window in a table of `entries` entries, the last ones padding."""
        more = entries - self.pages.shape[-1]
        behind = self.total.reshape(*self.starts.shape[:-1], 1).expand(*self.starts.shape[:-1], more)
        return PageTable(pad(self.pages, (0, more), value=-1), torch.cat([self.starts, behind], -1), self.total)


def page_table(pages: torch.Tensor, filled: torch.Tensor) -> PageTable:
    """The table of some pages, computed on their device without waiting for it.

    Args:
        pages: [n], [G, n] or [B, G or 1, n], integers; -1 is padding, anywhere.
        filled: [P] int64, filled slots of every page.
    """
    tokens = torch.where(pages >= 0, filled[pages.clamp(min=0)], 0)
    ends = tokens.cumsum(-1)
    return PageTable(
        pages.to(torch.int32).contiguous(),
        (ends - tokens).to(torch.int32),
        tokens.sum(-1).reshape(tokens.shape[:-1] or (1,)).to(torch.int32),
    )
