"""The majority vote of ReAttention, in torch; knows only indices.

The authors' code unites the keys chosen by every query and head of a layer and keeps those chosen most often
(`recall_clip`); see arXiv 2407.15176 and the released cache code.
"""

import torch


def most_voted(index: torch.Tensor, clip: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `clip` indices that occur most often; equal counts go to the lowest index.

    Args:
        index: int64 of any shape, one entry per vote.
        clip: how many distinct indices to keep at most.

    Returns:
        The kept indices [n] int64 in rising order, n <= clip, and how many votes each got [n] int64.
    """
    distinct, votes = index.flatten().unique(return_counts=True)
    kept = votes.sort(dim=-1, descending=True, stable=True).indices[:clip].sort().values
    return distinct[kept], votes[kept]
