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
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    first: torch.Tensor


def lay_out(lengths: Sequence[int]) -> Layout:
    """One page for the sink, then whole pages for every document."""
    first, starts = [0], []
    for length in lengths:
        starts.append(len(first) * PAGE)
        first += [len(first)] * pages_for(length)
    return Layout(tuple(starts), tuple(lengths), torch.tensor(first))
