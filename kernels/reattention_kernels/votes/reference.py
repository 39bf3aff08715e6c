"""The majority vote of ReAttention, in torch; knows only indices.

The authors' code unites the keys chosen by every query and head of a layer and keeps those chosen most often
(`recall_clip`); see arXiv 2407.15176 and the released cache code. Votes may weigh by count, as published, or by mass.
"""

import torch

UNIT = 1 << 20
"""Weights are counted in whole parts of this size, so that a sum does not depend on the order of its terms."""


def most_voted(
    index: torch.Tensor, bins: int, clip: int, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `clip` indices with most votes of each set; equal votes go to the lowest index.

    A set holds the votes that are counted together: one set for a layer, as published, or one for each key-value head.

    Args:
        index: [S, n] int64, one entry per vote, below `bins`; -1 is no vote.
        bins: how many different indices there may be, below 2**24.
        clip: how many distinct indices to keep at most.
        weight: [S, n] float32, not negative, what each vote counts; 1 when left out. Kept to six decimal places.

    Returns:
        The kept indices [S, clip] int64 in rising order, filled up with -1 at the end, and the votes each got [S, clip]:
        int64 without weights, float32 with them.
    """
    counted = torch.ones_like(index) if weight is None else (weight.double() * UNIT).round().long()
    votes = counted.new_zeros(len(index), bins + 1)
    votes.scatter_add_(1, index.where(index >= 0, bins), counted)
    return kept(votes[:, :bins], clip, weight is not None)


def kept(votes: torch.Tensor, clip: int, weighed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The bins with most votes of each set, as `most_voted` returns them; nothing here waits for the device.

    Args:
        votes: [S, bins] int64.
        clip: how many to keep at most.
        weighed: whether votes are parts of `UNIT`.
    """
    bins = votes.shape[1]
    numbers = torch.arange(bins, device=votes.device)
    # One number that orders by votes, then by lowest index: a radix selection then needs no tie rule.
    best = (votes * (1 << 24) + (bins - 1 - numbers)).topk(min(clip, bins), -1).values
    count = best >> 24
    index = torch.where(count > 0, bins - 1 - (best & ((1 << 24) - 1)), bins)
    index, order = index.sort(-1)
    count = count.gather(-1, order)
    missing = (0, clip - index.shape[1])
    index = torch.nn.functional.pad(index.masked_fill(index == bins, -1), missing, value=-1)
    count = torch.nn.functional.pad(count, missing)
    return index, count.float() / UNIT if weighed else count
