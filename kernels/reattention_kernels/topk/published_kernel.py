"""The authors' approximate top-k in Triton: one candidate of every 128 keys; knows neither positions nor pages.

Written from the description of the released kernel of ReAttention (arXiv 2407.15176): tiles of 128 queries by 128 keys, the
best key of each tile joins the best k in registers. It is here to be measured beside the exact operation.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import INTERPRETED, next_power, stages

SIZE = 128
"""Queries and keys of a tile."""


def one_per_block(
    query: torch.Tensor, key: torch.Tensor, k: int, size: int = SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation of `topk.reference.one_per_block` with blocks of 128 keys, on a GPU."""
    if size != SIZE:
        raise NotImplementedError(f"blocks of {size} keys: the kernel's have {SIZE}, as published")
    if not INTERPRETED and query.dtype == torch.float32:
        raise NotImplementedError("float32 queries: the kernel's tiles hold 16 bits a number")
    batch, heads, rows, dim = query.shape
    width = next_power(max(dim, 16))
    groups, n = key.shape[1], key.shape[2]
    own_rows = heads // groups * rows
    query, key = query.reshape(batch * groups, own_rows, dim), key.reshape(batch * groups, n, dim)
    scores = torch.empty(batch * groups, own_rows, k, device=query.device)
    found = torch.empty(scores.shape, dtype=torch.int64, device=query.device)
    _one_per_block_kernel[(triton.cdiv(own_rows, SIZE), batch * groups)](
        query,
        key,
        scores,
        found,
        own_rows,
        n,
        dim=dim,
        DIM=width,
        K=k,
        SLOTS=next_power(k),
        SIZE=SIZE,
        AS_FLOAT=INTERPRETED or query.dtype != key.dtype,
        num_warps=8,
        num_stages=stages(query.device, SIZE * width * key.itemsize, SIZE * width * query.itemsize),
    )
    return scores.view(batch, heads, rows, k), found.view(batch, heads, rows, k)


@triton.jit
def _one_per_block_kernel(
    query,
    key,
    scores,
    found,
    n_rows,
    n_keys,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    SIZE: tl.constexpr,
    AS_FLOAT: tl.constexpr,
):
    rows = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    own = tl.program_id(1).to(tl.int64)
    dims, columns, slots = tl.arange(0, DIM), tl.arange(0, SIZE), tl.arange(0, SLOTS)
    kept = (rows < n_rows)[:, None] & (dims < dim)[None, :]
    q = tl.load(query + (own * n_rows + rows[:, None]) * dim + dims[None, :], mask=kept, other=0.0)
    if AS_FLOAT:
        q = q.to(tl.float32)
    best = tl.where((slots < K)[None, :] & (rows >= 0)[:, None], float("-inf"), float("inf"))
    which = tl.full((SIZE, SLOTS), -1, tl.int32)
    for start in range(0, n_keys, SIZE):
        tokens = start + columns
        inside = (tokens < n_keys)[:, None] & (dims < dim)[None, :]
        k = tl.load(key + (own * n_keys + tokens[:, None]) * dim + dims[None, :], mask=inside, other=0.0)
        if AS_FLOAT:
            values = tl.dot(q, tl.trans(k.to(tl.float32)), input_precision="ieee")
        else:
            values = tl.dot(q, tl.trans(k))
        values = tl.where((tokens < n_keys)[None, :], values, float("-inf"))
        top, place = tl.max(values, 1, return_indices=True)
        worst, slot = tl.min(best, 1, return_indices=True)
        put = (slots[None, :] == slot[:, None]) & (top > worst)[:, None]
        best = tl.where(put, top[:, None], best)
        which = tl.where(put, (start + place)[:, None], which)
    best = tl.where((slots < K)[None, :], best, float("-inf"))
    at = (own * n_rows + rows) * K
    for rank in range(K):
        top, slot = tl.max(best, 1, return_indices=True)
        taken = slots[None, :] == slot[:, None]
        tl.store(scores + at + rank, top, mask=rows < n_rows)
        token = tl.where(top > float("-inf"), tl.max(tl.where(taken, which, -1), 1), -1)
        tl.store(found + at + rank, token.to(tl.int64), mask=rows < n_rows)
        best = tl.where(taken, float("-inf"), best)
