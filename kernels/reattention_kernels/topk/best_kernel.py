"""The best spans and then the best keys of every row, by the maxima of blocks, in Triton; does not know how those were made.

Both keep the best few in registers and replace the worst of them while something better is found. A score and its index
are one integer there, which orders by score and then by lowest index.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import next_power
from reattention_kernels.topk.maxima_kernel import SPAN, Shape

NOTHING = tl.constexpr(-(2**63) + 1)
"""Orders below every score; the 256 integers from it on are empty places."""
WHOLE = tl.constexpr(2**63 - 1)
"""Orders above every score."""


def best_spans(tops: torch.Tensor, wanted: int) -> torch.Tensor:
    """The spans with the largest maxima, in no order: [B·G, R, wanted] int32; -1 where there are no more."""
    sets, spans, rows = tops.shape
    chosen = torch.empty(sets, rows, wanted, dtype=torch.int32, device=tops.device)

    # Few rows: one program each would leave the GPU idle, many share a read of 128 bytes.
    together = 32 if rows * sets >= 32768 else 8
    _best_spans_kernel[(triton.cdiv(rows, together), sets)](
        tops,
        chosen,
        rows,
        spans,
        WANTED=wanted,
        SLOTS=next_power(wanted),
        ROWS=together,
        CHUNK=2048 // together,
        num_warps=1,
    )
    return chosen


@triton.jit
def _ranked(score, index):
    """One integer that orders by score, then by lowest index; the smallest of all where the score is -inf."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return tl.where(score == float("-inf"), NOTHING, (ordered << 32) | (0x7FFFFFFF - index).to(tl.int64))


@triton.jit
def _best_spans_kernel(
    tops,
    chosen,
    n_rows,
    n_spans,
    WANTED: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = tl.program_id(1).to(tl.int64)
    slots, offsets = tl.arange(0, SLOTS), tl.arange(0, CHUNK)
    # Empty slots differ, so that one at a time is replaced; those that are not wanted can never be the worst.
    empty = tl.where(slots < WANTED, slots.to(tl.int64) + NOTHING + 1, WHOLE)
    best = empty[:, None] + tl.zeros((SLOTS, ROWS), tl.int64)
    for start in range(0, n_spans, CHUNK):
        span = start + offsets
        here = (span < n_spans)[:, None] & (rows < n_rows)[None, :]
        at = tops + (own * n_spans + span[:, None]) * n_rows + rows[None, :]
        values = _ranked(tl.load(at, mask=here, other=float("-inf")), span[:, None])
        worst, top = tl.min(best, 0), tl.max(values, 0)
        while tl.max((top > worst).to(tl.int32), 0) > 0:
            best = tl.where((best == worst[None, :]) & (top > worst)[None, :], top[None, :], best)
            values = tl.where(values == top[None, :], NOTHING, values)
            worst, top = tl.min(best, 0), tl.max(values, 0)
    which = tl.where(best < NOTHING + 256, -1, 0x7FFFFFFF - (best & 0xFFFFFFFF)).to(tl.int32)
    at = chosen + (own * n_rows + rows[None, :]) * WANTED + slots[:, None]
    tl.store(at, which, mask=(slots < WANTED)[:, None] & (rows < n_rows)[None, :])


def best_keys(
    query: torch.Tensor,
    key: torch.Tensor,
    allowed: torch.Tensor | None,
    maxima: torch.Tensor,
    chosen: torch.Tensor,
    wanted: int,
    shape: Shape,
    scores: torch.Tensor,
    found: torch.Tensor,
) -> None:
    """The best keys of the `wanted` best blocks of the chosen spans, into `scores` and `found` [B·G, R, k]."""
    sets, rows, dim = query.shape
    k, each = scores.shape[2], SPAN // shape.block
    wanted = min(wanted, chosen.shape[2] * each)
    _best_keys_kernel[(rows, sets)](
        query,
        key,
        allowed if allowed is not None else query,
        maxima,
        chosen,
        scores,
        found,
        maxima.shape[1],
        key.shape[1],
        key.shape[2],
        rows,
        query.stride(0),
        key.stride(0),
        key.stride(1),
        key.stride(2),
        scores.stride(0),
        dim=dim,
        DIM=next_power(dim),
        SPANS=chosen.shape[2],
        WANTED=wanted,
        BLOCKS=next_power(chosen.shape[2] * each),
        EACH=each,
        SUB=shape.block,
        KEYS=max(16, shape.block // 4),
        K=k,
        SLOTS=next_power(k),
        MASKED=allowed is not None,
        num_warps=1,
    )


@triton.jit
def _fetch(
    key, allowed, ranked, begin, n_keys, key_token, dims,
    dim: tl.constexpr, SUB: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Some keys of a block that is given by its rank: their indices, which of them there are, and they [KEYS, DIM]."""
    block = tl.where(ranked < NOTHING + 256, -1, 0x7FFFFFFF - (ranked & 0xFFFFFFFF)).to(tl.int32)
    # Negative where there is no such block.
    token = block * SUB + begin + tl.arange(0, KEYS)
    seen = (token >= 0) & (token < n_keys)
    if MASKED:
        seen = seen & (tl.load(allowed + token, mask=seen, other=0) != 0)
    inside = seen[:, None] & (dims < dim)[None, :]
    return token, seen, tl.load(key + token.to(tl.int64)[:, None] * key_token + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _best_keys_kernel(
    query,
    key,
    allowed,
    maxima,
    chosen,
    scores,
    found,
    n_blocks,
    groups,
    n_keys,
    n_rows,
    query_set,
    key_batch,
    key_group,
    key_token,
    out_set,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    SPANS: tl.constexpr,
    WANTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    EACH: tl.constexpr,
    SUB: tl.constexpr,
    KEYS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1).to(tl.int64)
    dims, slots = tl.arange(0, DIM), tl.arange(0, SLOTS)
    q = tl.load(query + own * query_set + row * dim + dims, mask=dims < dim, other=0.0).to(tl.float32)
    base = key + own // groups * key_batch + own % groups * key_group
    best = tl.where(slots < K, slots.to(tl.int64) + NOTHING + 1, WHOLE)
    # The lemma once more: of the blocks in the chosen spans, the best few hold the best keys.
    entry = tl.arange(0, BLOCKS)
    span = tl.load(chosen + (own * n_rows + row) * SPANS + entry // EACH, mask=entry < SPANS * EACH, other=-1)
    listed = span * EACH + entry % EACH
    at = maxima + (own * n_blocks + listed) * n_rows + row
    blocks = _ranked(tl.load(at, mask=(span >= 0) & (listed < n_blocks), other=float("-inf")), listed)
    first = tl.max(blocks, 0)
    token, seen, k = _fetch(base, allowed, first, 0, n_keys, key_token, dims, dim, SUB, KEYS, MASKED)
    for part in range(1, WANTED * SUB // KEYS + 1):
        if part * KEYS % SUB == 0:
            blocks = tl.where(blocks == first, NOTHING, blocks)
            first = tl.max(blocks, 0)
        # The next keys are on their way while these are looked at.
        following = _fetch(
            base, allowed, tl.where(part < WANTED * SUB // KEYS, first, NOTHING), part * KEYS % SUB,
            n_keys, key_token, dims, dim, SUB, KEYS, MASKED,
        )  # fmt: skip
        values = _ranked(tl.where(seen, tl.sum(k.to(tl.float32) * q[None, :], 1), float("-inf")), token)
        worst, top = tl.min(best, 0), tl.max(values, 0)
        while top > worst:
            best = tl.where(best == worst, top, best)
            values = tl.where(values == top, NOTHING, values)
            worst, top = tl.min(best, 0), tl.max(values, 0)
        token, seen, k = following
    # Falling score, then rising index.
    best = tl.where(slots < K, best, NOTHING)
    for rank in range(K):
        top = tl.max(best, 0)
        empty = top < NOTHING + 256
        ordered = (top >> 32).to(tl.int32)
        score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        tl.store(scores + own * out_set + row * K + rank, tl.where(empty, float("-inf"), score))
        tl.store(found + own * out_set + row * K + rank, tl.where(empty, -1, 0x7FFFFFFF - (top & 0xFFFFFFFF)))
        best = tl.where(best == top, NOTHING, best)
