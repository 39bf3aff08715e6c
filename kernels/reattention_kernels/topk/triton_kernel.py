"""Exact top-k keys of every query and head, in Triton; knows neither positions nor documents.

The k best keys lie inside the k blocks of keys with the largest block maxima: a key outside them has k keys before it, one
in each. So three launches do: maxima of blocks, and of spans of blocks, from one matrix product whose scores never leave the
registers; the k best spans of every row; and the k best keys of the k best blocks of those spans. Ties go to the lowest
index in the choice of spans and blocks as well, which keeps the lemma true for equal scores.
"""

import torch
import triton

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.topk import WORKSPACE
from reattention_kernels.topk.best_kernel import best_keys, best_spans
from reattention_kernels.topk.maxima_kernel import block_maxima, exact_in_float32, shape_for


def select_topk(
    query: torch.Tensor,
    key: torch.Tensor,
    k: int,
    allowed: torch.Tensor | None = None,
    index: KeyIndex | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation of `topk.reference.select_topk`, on a GPU.

    With an index the blocks are chosen by its 8-bit scores, approximately, and only their keys are scored exactly.
    """
    batch, heads, rows, dim = query.shape
    groups, n = key.shape[1], key.shape[2]
    query = query.reshape(batch * groups, heads // groups * rows, dim)
    if key.stride(3) != 1:
        key = key.contiguous()
    allowed = allowed if allowed is None else allowed.contiguous()
    scores = torch.empty(batch * groups, query.shape[1], k, device=query.device)
    found = torch.empty(scores.shape, dtype=torch.int64, device=query.device)
    if k == 0 or n == 0 or rows == 0:
        scores, found = scores.fill_(float("-inf")), found.fill_(-1)
        return scores.view(batch, heads, rows, k), found.view(batch, heads, rows, k)
    shape = shape_for(dim, n, index is not None, exact_in_float32(query, key))
    tiles = triton.cdiv(n, shape.tile)
    # An 8-bit score is off by about a hundredth, in float8 by three: some blocks more leave the best keys inside.
    spare = 0 if index is None else triton.cdiv(k, 4 if index.codes.dtype == torch.int8 else 2)
    wanted = k + spare
    at_once = max(128, WORKSPACE // (4 * tiles * (shape.tile // shape.block) * batch * groups) // 128 * 128)
    for first in range(0, query.shape[1], at_once):
        part = slice(first, first + at_once)
        maxima, tops = block_maxima(query[:, part], key, allowed, index, shape)
        chosen = best_spans(tops, min(wanted, tops.shape[1]))
        best_keys(query[:, part], key, allowed, maxima, chosen, wanted, shape, scores[:, part], found[:, part])
    return scores.view(batch, heads, rows, k), found.view(batch, heads, rows, k)
