"""Softmax mass of every page of keys for a short question, in torch; knows neither positions nor documents.

The mass of a page is exp(logsumexp over the page - logsumexp over all keys), averaged over the question's tokens. One
read of the keys; scores exist only block by block, in float32 whatever the keys' type.
"""

import torch

BLOCK = 256
"""Pages scored at a time: H x Q x BLOCK x T float32 scores exist at once."""


def page_evidence(query: torch.Tensor, key: torch.Tensor, filled: torch.Tensor, scaling: float) -> torch.Tensor:
    """Mean softmax mass that each page gets from the question's tokens, for every head.

    Args:
        query: [H, Q, D], un-rotated queries of the question.
        key: [G, P, T, D], un-rotated keys in pages; query head h reads key head h // (H // G).
        filled: [P] int64, how many of a page's T slots hold a key; a page with 0 gets no mass.
        scaling: factor on q·k before the softmax, the attention layer's own.

    Returns:
        [H, P] float32; each row sums to 1 (to 0 when no page holds a key).
    """
    heads, rows, dim = query.shape
    groups, pages, size, _ = key.shape
    grouped = query.float().reshape(groups, (heads // groups) * rows, dim) * scaling
    hole = torch.arange(size, device=key.device) >= filled[:, None]
    mass = grouped.new_empty(groups, grouped.shape[1], pages)
    for start in range(0, pages, BLOCK):
        block = key[:, start : start + BLOCK].flatten(1, 2).float()
        scores = (grouped @ block.transpose(1, 2)).unflatten(-1, (-1, size))
        scores.masked_fill_(hole[start : start + BLOCK], float("-inf"))
        mass[..., start : start + BLOCK] = scores.logsumexp(-1)
    mass = (mass - mass.logsumexp(-1, keepdim=True)).exp_().nan_to_num_(0.0)
    return mass.reshape(heads, rows, pages).mean(1)
