"""Exact top-k keys of every query and head, in torch; knows neither positions nor pages.

ReAttention (arXiv 2407.15176) scores un-rotated queries against un-rotated keys. Scores are computed block by block, so
the whole score matrix is never in memory; they are taken in float32 whatever the keys' type.
"""

import torch

BLOCK = 8192
"""Keys scored at a time: H x Q x BLOCK float32 scores exist at once."""


def select_topk(
    query: torch.Tensor, key: torch.Tensor, k: int, allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and indices of the k best keys of every query; ties go to the lowest index.

    Args:
        query: [H, Q, D], un-rotated.
        key: [G, N, D], un-rotated; query head h reads key head h // (H // G).
        k: how many keys to take; with fewer allowed keys than that, as many as there are.
        allowed: [N] bool, the keys that may be chosen; all of them when left out.

    Returns:
        Scores [H, Q, k] float32 in falling order, and their key indices [H, Q, k] int64.
    """
    heads, rows, dim = query.shape
    groups, n, _ = key.shape
    grouped = query.float().reshape(groups, (heads // groups) * rows, dim)
    k = min(k, n if allowed is None else int(allowed.sum()))
    best = query.new_empty((groups, grouped.shape[1], 0), dtype=torch.float32)
    where = torch.empty_like(best, dtype=torch.int64)
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        if k == 0 or (allowed is not None and not allowed[block].any()):
            continue
        scores = grouped @ key[:, block].float().transpose(1, 2)
        if allowed is not None:
            scores.masked_fill_(~allowed[block], float("-inf"))
        top, index = _topk_lowest_index(scores, min(k, scores.shape[-1]))
        # Earlier blocks stand first and hold the lower indices, so a stable sort keeps the tie rule.
        merged, order = torch.cat([best, top], -1).sort(dim=-1, descending=True, stable=True)
        best, where = merged[..., :k], torch.cat([where, index + start], -1).gather(-1, order[..., :k])
    return best.reshape(heads, rows, k), where.reshape(heads, rows, k)


def _topk_lowest_index(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` with ties to the lowest index, in falling order of score, then rising index."""
    top, index = scores.topk(k, -1)
    tied = (scores == top[..., -1:]).sum(-1) > (top == top[..., -1:]).sum(-1)
    if tied.any():
        # torch.topk may keep any of several equal scores at the edge: sort those rows in full.
        rows, order = scores[tied].sort(dim=-1, descending=True, stable=True)
        top[tied], index[tied] = rows[..., :k], order[..., :k]
    index, order = index.sort(-1)
    top, order = top.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return top, index.gather(-1, order)
