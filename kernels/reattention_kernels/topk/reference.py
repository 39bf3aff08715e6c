"""Exact top-k keys of every query and head, in torch; knows neither positions nor pages.

ReAttention (arXiv 2407.15176) scores un-rotated queries against un-rotated keys. Scores are computed block by block, so
the whole score matrix is never in memory; they are taken in float32 whatever the keys' type.
"""

import torch

from reattention_kernels.key_index import KeyIndex

BLOCK = 1024
"""Keys scored at a time: B x H x Q x BLOCK float32 scores exist at once, few enough to stay in a processor's cache."""


def select_topk(
    query: torch.Tensor,
    key: torch.Tensor,
    k: int,
    allowed: torch.Tensor | None = None,
    index: KeyIndex | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and indices of the k best keys of every query; ties go to the lowest index.

    Args:
        query: [B, H, Q, D], un-rotated.
        key: [B, G, N, D], un-rotated; query head h reads key head h // (H // G).
        k: how many keys to take.
        allowed: [N] bool, the keys that may be chosen; all of them when left out.
        index: the keys in 8 bits, N = P · T (B is 1). A kernel may look through it first and then find an approximate
            choice of keys in less time; their scores are exact. Here it changes nothing.

    Returns:
        Scores [B, H, Q, k] float32 in falling order, and their key indices [B, H, Q, k] int64. With fewer allowed keys
        than k, the last columns are -inf and -1.
    """
    batch, heads, rows, dim = query.shape
    groups, n = key.shape[1], key.shape[2]
    grouped = query.float().reshape(batch, groups, (heads // groups) * rows, dim)
    best = grouped.new_full((*grouped.shape[:3], k), float("-inf"))
    where = torch.full_like(best, -1, dtype=torch.int64)
    may = None if allowed is None else allowed.nonzero().squeeze(1)
    for start in range(0, (n if may is None else len(may)) if k else 0, BLOCK):
        block = slice(start, start + BLOCK)
        part = key[:, :, block] if may is None else key[:, :, may[block]]
        scores = grouped @ part.float().transpose(2, 3)
        top, found = _topk_lowest_index(scores, min(k, scores.shape[-1]))
        found = found + start if may is None else may[block][found]
        found = found.masked_fill(top == float("-inf"), -1)
        # Earlier blocks stand first and hold the lower indices, so a stable sort keeps the tie rule.
        merged, order = torch.cat([best, top], -1).sort(dim=-1, descending=True, stable=True)
        best, where = merged[..., :k], torch.cat([where, found], -1).gather(-1, order[..., :k])
    return best.reshape(batch, heads, rows, k), where.reshape(batch, heads, rows, k)


def _topk_lowest_index(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` with ties to the lowest index, in falling order of score, then rising index."""
    top, index = scores.topk(min(k + 1, scores.shape[-1]), -1)
    after, top, index = top[..., k:], top[..., :k], index[..., :k]
    tied = ((after == top[..., -1:]) & (after > float("-inf"))).any(-1)
    if tied.any():
        # torch.topk may keep any of several equal scores at the edge: sort those rows in full.
        rows, order = scores[tied].sort(dim=-1, descending=True, stable=True)
        top[tied], index[tied] = rows[..., :k], order[..., :k]
    index, order = index.sort(-1)
    top, order = top.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return top, index.gather(-1, order)


def one_per_block(query: torch.Tensor, key: torch.Tensor, k: int, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of the best keys of each block: the approximate rule of the authors' released kernel.

    It misses a key whose block holds a better one, so neighbours never stand together in the choice.

    Args:
        query: [B, H, Q, D], un-rotated.
        key: [B, G, N, D], un-rotated.
        k: how many keys to take.
        size: keys in a block.

    Returns:
        As `select_topk`.
    """
    batch, heads, rows, dim = query.shape
    groups, n = key.shape[1], key.shape[2]
    grouped = query.float().reshape(batch, groups, (heads // groups) * rows, dim)
    scores = torch.nn.functional.pad(grouped @ key.float().transpose(2, 3), (0, -n % size), value=float("-inf"))
    top, place = scores.unflatten(-1, (-1, size)).max(-1)
    place = place + torch.arange(0, scores.shape[-1], size, device=key.device)
    top = torch.nn.functional.pad(top, (0, max(0, k - top.shape[-1])), value=float("-inf"))
    place = torch.nn.functional.pad(place, (0, max(0, k - place.shape[-1])), value=-1)
    best, order = top.sort(dim=-1, descending=True, stable=True)
    found = place.gather(-1, order)
    return best[..., :k].reshape(batch, heads, rows, k), found[..., :k].reshape(batch, heads, rows, k)
