"""Where the documents of a corpus lie among its pages; knows only their lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reattention_core.cache.pages import PAGE, pages_for


@dataclass(frozen=True)
class Layout:
    """Where every document's tokens lie.

    Attributes:
        starts: each document's first address; the sink lies at 0.
        lengths: each document's number of tokens.
        first: [P] int64, first page of the document that each page belongs to.
        filled: [P] int64, tokens of every page; its document's last may have fewer than the others.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    first: torch.Tensor
    filled: torch.Tensor


def lay_out(lengths: Sequence[int]) -> Layout:
    """One page for the sink, then whole pages for every document."""
    first, filled, starts = [0], [PAGE], []
    for length in lengths:
        starts.append(len(first) * PAGE)
        pages = pages_for(length)
        first += [len(first)] * pages
        filled += [PAGE] * (pages - 1) + [length - (pages - 1) * PAGE]
    return Layout(tuple(starts), tuple(lengths), torch.tensor(first), torch.tensor(filled))
