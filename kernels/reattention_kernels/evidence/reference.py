"""Softmax mass of every page of keys for a short question, in torch; knows neither positions nor documents.

The mass of a page is exp(logsumexp over the page - logsumexp over all keys), averaged over the question's tokens. One
read of the keys; scores exist only block by block, in float32 whatever the keys' type.
"""

from collections.abc import Sequence

import torch

from reattention_kernels.key_index import KeyIndex

BLOCK = 256
"""Pages scored at a time: H x Q x BLOCK x T float32 scores exist at once."""


def page_evidence(
    query: torch.Tensor,
    key: torch.Tensor | KeyIndex,
    filled: torch.Tensor,
    scaling: float,
    heads: Sequence[int] | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean softmax mass that each page gets from the question's tokens, for every head or for some.

    Args:
        query: [H, Q, D], un-rotated queries of the question.
        key: [G, P, T, D], un-rotated keys in pages, or their 8-bit index; query head h reads key head h // (H // G).
        filled: [P] int64, how many of a page's T slots hold a key; a page with 0 gets no mass.
        scaling: factor on q·k before the softmax, the attention layer's own.
        heads: the S query heads wanted, in the order of the result; all H when left out.
        weights: [S] float32, a factor on each head's row.

    Returns:
        [S, P] float32; each row sums to its weight, 1 without weights (to 0 when no page holds a key).
    """
    codes, scale = (key.codes, key.scale) if isinstance(key, KeyIndex) else (key, None)
    every, rows, dim = query.shape
    groups, pages, size, _ = codes.shape
    grouped = query.float().reshape(groups, (every // groups) * rows, dim) * scaling
    hole = torch.arange(size, device=codes.device) >= filled[:, None]
    mass = grouped.new_empty(groups, grouped.shape[1], pages)
    for start in range(0, pages, BLOCK):
        part = slice(start, start + BLOCK)
        block = codes[:, part].float()
        if scale is not None:
            block = block * scale[:, part, None, None]
        scores = (grouped @ block.flatten(1, 2).transpose(1, 2)).unflatten(-1, (-1, size))
        scores.masked_fill_(hole[part], float("-inf"))
        mass[..., part] = scores.logsumexp(-1)
    mass = (mass - mass.logsumexp(-1, keepdim=True)).exp_().nan_to_num_(0.0)
    mean = mass.reshape(every, rows, pages).mean(1)
    mean = mean if heads is None else mean[list(heads)]
    return mean if weights is None else mean * weights[:, None]
