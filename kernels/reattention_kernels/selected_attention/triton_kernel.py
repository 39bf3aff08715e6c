"""Attention over selected pages and a tail in one pass over their keys and values; knows what the reference knows.

Keys are read un-rotated through the page table, turned in registers at their window position and dotted at once, so the
window is never written anywhere. All query heads of a key-value head, times a block of queries, are the rows of one
tile: each key is read once for them. Where tiles are few the window is split among programs, and a second small kernel
merges their parts by log-sum-exp (flash-decoding). Grid and splits follow from shapes alone, so that a CUDA graph can be
replayed while the tail grows.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import INTERPRETED, next_power, overlaps
from reattention_kernels.rotation.turning_kernel import turned
from reattention_kernels.selected_attention.page_table import PageTable

PROGRAMS_PER_SM = 3
"""The window is split until there are about this many programs for each multiprocessor."""

MERGED = 256
"""Parts of a window at most: the merge kernel reads them all at once."""

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _straight(token, on, stride, FROM: tl.constexpr, TO: tl.constexpr, PADDED: tl.constexpr):
    """Dimensions FROM..TO of tokens [N] (pointers) as they are: [N, PADDED], zeros beyond."""
    dim = FROM + tl.arange(0, PADDED)[None, :]
    return tl.load(token[:, None] + dim * stride, mask=on[:, None] & (dim < TO), other=0.0)


@triton.jit
def _attend_tile(
    peak, mass, out, q_first, q_second, q_rest, own,
    key, value, position, inside, cos, sin, key_stride, value_stride, n_positions, scaling,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, VALUES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr, INTERLEAVED: tl.constexpr, SLIDING: tl.constexpr, SOFTCAP: tl.constexpr, OPERAND: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One step of online softmax over the tokens that `key` and `value` [N] point to; state and scores in log2 units."""
    scores = tl.zeros([own.shape[0], inside.shape[0]], tl.float32)
    if HALF > 0:
        first, second = turned(
            key, position, inside, cos, sin, key_stride, n_positions, HALF, PAIRS, INTERLEAVED, PACKED
        )
        scores = tl.dot(q_first, tl.trans(first.to(OPERAND)), scores, input_precision="ieee")
        scores = tl.dot(q_second, tl.trans(second.to(OPERAND)), scores, input_precision="ieee")
    if REST > 0:
        rest = _straight(key, inside, key_stride, 2 * HALF, DIM, REST).to(OPERAND)
        scores = tl.dot(q_rest, tl.trans(rest), scores, input_precision="ieee")
    scores *= scaling
    if SOFTCAP > 0:
        # tanh by an exponential that cannot overflow.
        small = tl.exp2(tl.abs(scores) * (-2.0 * LOG2E / SOFTCAP))
        tanh = (1.0 - small) / (1.0 + small)
        scores = tl.where(scores < 0, -SOFTCAP, SOFTCAP) * tanh
    seen = inside[None, :] & (position[None, :] <= own[:, None])
    if SLIDING > 0:
        seen &= position[None, :] > own[:, None] - SLIDING
    scores = tl.where(seen, scores * LOG2E, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    level = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - level[:, None])
    fade = tl.exp2(peak - level)
    values = _straight(value, inside, value_stride, 0, VALUE_DIM, VALUES).to(OPERAND)
    out = tl.dot(weights.to(OPERAND), values, out * fade[:, None], input_precision="ieee")
    return new_peak, mass * fade + tl.sum(weights, 1), out


@triton.jit
def _look_up(pages, starts, begin, n_entries, in_pages, SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page, place in it, position and whether there is a token, of BLOCK_N slots of the table from `begin` on."""
    slot = begin + tl.arange(0, BLOCK_N)
    entry, place = slot // SIZE, slot % SIZE
    page = tl.load(pages + entry, mask=entry < n_entries, other=-1)
    position = tl.load(starts + entry, mask=entry < n_entries, other=0) + place
    # A page has as many tokens as lie before the next: the table says so, and nobody waits for another look-up.
    stop = tl.load(starts + entry + 1, mask=entry + 1 < n_entries, other=in_pages)
    return page.to(tl.int64), place, position, (page >= 0) & (position < stop)


@triton.jit(do_not_specialize=["groups", "rows", "n_entries", "n_positions"])
def _attend_kernel(
    query, key_pages, value_pages, pages, starts, total, tail_key, tail_value, n_tail, cos, sin, sinks, out, lse,
    groups, rows, n_entries, n_positions, scaling,
    query_b, query_h, query_q, query_d, key_g, key_p, key_t, key_d, value_g, value_p, value_t, value_d,
    tail_key_b, tail_key_g, tail_key_m, tail_key_d, tail_value_b, tail_value_g, tail_value_m, tail_value_d,
    out_s, out_b, out_h, out_q, table_b, table_g, total_b, total_g,
    REPEATS: tl.constexpr, SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, VALUES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr, INTERLEAVED: tl.constexpr, SLIDING: tl.constexpr, SOFTCAP: tl.constexpr, INTERPRETED: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one key-value head over every `splits`-th tile of its window."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()
    # The interpreter computes in numpy, which has no bfloat16: a dot of it would be garbage there.
    OPERAND: tl.constexpr = tl.float32 if INTERPRETED else query.dtype.element_ty
    PACKED: tl.constexpr = not INTERPRETED
    split, splits = tl.program_id(1), tl.num_programs(1)
    # Key-value heads are neighbours in the grid: they read the same rows of the cosine table at the same time.
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups
    tiles = (rows * REPEATS + BLOCK_M - 1) // BLOCK_M
    tile, batch = block % tiles, (block // tiles).to(tl.int64)
    group = group.to(tl.int64)

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    nth, head = row // REPEATS, group * REPEATS + row % REPEATS
    real = nth < rows
    in_pages = tl.load(total + batch * total_b + group * total_g)
    in_tail = tl.load(n_tail)
    own = in_pages + in_tail - rows + nth

    at = query + batch * query_b + head * query_h + nth.to(tl.int64) * query_q
    q_first, q_second, q_rest = 0.0, 0.0, 0.0
    if HALF > 0:
        q_first, q_second = turned(
            at, own, real & (own >= 0), cos, sin, query_d, n_positions, HALF, PAIRS, INTERLEAVED, PACKED
        )
        # A window beyond the table of angles must be seen in the result, not read beyond the table's end.
        q_first = tl.where((own < n_positions)[:, None], q_first, float("nan")).to(OPERAND)
        q_second = q_second.to(OPERAND)
    if REST > 0:
        q_rest = _straight(at, real, query_d, 2 * HALF, DIM, REST).to(OPERAND)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:
        # A sink is a first score without a value; it counts once, so in one split.
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        peak = tl.where(split == 0, sink, peak)
        mass = tl.where(split == 0, 1.0, mass)
    attended = tl.zeros([BLOCK_M, VALUES], tl.float32)

    in_reach = 0
    if SLIDING > 0:
        in_reach = in_pages + in_tail - rows + (tile * BLOCK_M) // REPEATS - SLIDING + 1
    n_slots = n_entries * SIZE
    entries = batch * table_b + group * table_g
    pages, starts = pages + entries, starts + entries
    page, place, position, inside = _look_up(pages, starts, split * BLOCK_N, n_entries, in_pages, SIZE, BLOCK_N)
    for begin in range(split * BLOCK_N, n_slots, splits * BLOCK_N):
        # The next tile is looked up now: its keys can then be asked for while this one is computed.
        following = _look_up(pages, starts, begin + splits * BLOCK_N, n_entries, in_pages, SIZE, BLOCK_N)
        inside &= position >= in_reach
        peak, mass, attended = _attend_tile(
            peak, mass, attended, q_first, q_second, q_rest, own,
            key_pages + group * key_g + page * key_p + place * key_t,
            value_pages + group * value_g + page * value_p + place * value_t,
            position, inside, cos, sin, key_d, value_d, n_positions, scaling,
            DIM, VALUE_DIM, VALUES, HALF, PAIRS, REST, INTERLEAVED, SLIDING, SOFTCAP, OPERAND, PACKED,
        )  # fmt: skip
        page, place, position, inside = following

    # The tail's tiles go on where the pages' ended; the last row of this tile sees the most of them.
    skipped = (n_slots + BLOCK_N - 1) // BLOCK_N % splits
    last = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // REPEATS, rows - 1)
    for begin in range((split + splits - skipped) % splits * BLOCK_N, in_tail - rows + last + 1, splits * BLOCK_N):
        token = begin + tl.arange(0, BLOCK_N)
        position = in_pages + token
        inside = (token < in_tail) & (position >= in_reach)
        token = token.to(tl.int64)
        peak, mass, attended = _attend_tile(
            peak, mass, attended, q_first, q_second, q_rest, own,
            tail_key + batch * tail_key_b + group * tail_key_g + token * tail_key_m,
            tail_value + batch * tail_value_b + group * tail_value_g + token * tail_value_m,
            position, inside, cos, sin, tail_key_d, tail_value_d, n_positions, scaling,
            DIM, VALUE_DIM, VALUES, HALF, PAIRS, REST, INTERLEAVED, SLIDING, SOFTCAP, OPERAND, PACKED,
        )  # fmt: skip

    share = tl.where(mass == 0, 1.0, mass)
    dim = tl.arange(0, VALUES)[None, :]
    at = out + split * out_s + batch * out_b + head * out_h + nth.to(tl.int64) * out_q
    result = (attended / share[:, None]).to(out.dtype.element_ty)
    tl.store(at[:, None] + dim, result, mask=real[:, None] & (dim < VALUE_DIM))
    if lse is not None:
        at = lse + split * out_s // VALUE_DIM + batch * out_b // VALUE_DIM + nth * out_q // VALUE_DIM + head
        tl.store(at, tl.where(mass == 0, float("-inf"), peak + tl.log2(share)), mask=real)


@triton.jit(do_not_specialize=["splits", "n_rows"])
def _merge_kernel(
    parts, lse, out, splits, n_rows,
    VALUE_DIM: tl.constexpr, VALUES: tl.constexpr, MERGED: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """One row of the result from its parts, each weighted by the exponential of its log-sum-exp."""
    if OVERLAPPED:
        # Launched while the parts are still being computed: only their being there is waited for.
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, VALUES)
    split = tl.arange(0, MERGED)
    at = split.to(tl.int64) * n_rows + row
    level = tl.load(lse + at, mask=split < splits, other=float("-inf"))
    on = (split < splits)[:, None] & (dim < VALUE_DIM)[None, :]
    part = tl.load(parts + at[:, None] * VALUE_DIM + dim[None, :], mask=on, other=0.0)
    peak = tl.max(level, 0)
    weight = tl.exp2(level - tl.where(peak == float("-inf"), 0.0, peak))
    mass = tl.sum(weight, 0)
    merged = tl.sum(weight[:, None] * part, 0) / tl.where(mass == 0, 1.0, mass)
    tl.store(out + row * VALUE_DIM + dim, merged.to(out.dtype.element_ty), mask=dim < VALUE_DIM)


class Tiles(NamedTuple):
    """How the work of one launch is cut.

    Attributes:
        rows: rows of a tile, a power of two from 16 on.
        keys: keys of a tile, likewise.
        warps: warps of a program.
        stages: steps of the loop over keys that are loaded ahead.
    """

    rows: int
    keys: int
    warps: int
    stages: int


def tiles_for(n_rows: int, dim: int, itemsize: int) -> Tiles:
    """Tiles for `n_rows` rows of a key-value head of `dim` dimensions, in a type of `itemsize` bytes.

    For one query in bfloat16 the best of twelve by timing; the others by compiling for compute capability 8.0 and 9.0: in
    16-bit types next to no register spills, and shared memory stays under the 99 KiB that every GPU from 8.0 on has.
    """
    wide = dim > 128
    if itemsize > 2:  # exact float32 products run without tensor cores
        return Tiles(16, 16 if wide else 32, 4, 2)
    if n_rows <= 16:
        return Tiles(16, 32 if wide else 64, 4, 2)
    if n_rows <= 32 or wide:
        return Tiles(32, 32, 4, 2)
    return Tiles(64, 64 if dim <= 64 else 32, 4, 2)


def splits_for(n_programs: int, n_tiles: int, device: torch.device) -> int:
    """Among how many programs each window of `n_tiles` tiles of keys is split."""
    most = max(1, min(n_tiles, MERGED, PROGRAMS_PER_SM * _multiprocessors(device) // n_programs))
    # As many as needed for the longest to be as short as it can be: every part more costs the merge.
    return -(-n_tiles // -(-n_tiles // most))


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; 2 for the interpreter, so that it splits too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _padded(dims: int) -> int:
    """The power of two that a dot takes `dims` dimensions in; 0 for none."""
    return max(16, next_power(dims)) if dims else 0


def attend_selected(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    table: PageTable,
    tail_key: torch.Tensor,
    tail_value: torch.Tensor,
    n_tail: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scaling: float,
    interleaved: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last Q tokens of the tail over selected pages and the tail; see the reference for each argument.

    One launch, or two where the window is split. Scores and sums are float32; rotated keys and queries are rounded to the type of
    `query`, which may be float32, bfloat16 or float16, and where they and the angles have the same 16 bits so is each
    product in the rotation, as the stock model's are. Queries, pages and tail may be views with any strides.

    Returns:
        [B, H, Q, Dv] in the type of `tail_value`, a view of contiguous [B, Q, H, Dv]. NaN where the window reaches
        beyond the table of angles.
    """
    batch, heads, rows, dim = query.shape
    groups, _, size, values = value_pages.shape
    n_entries, room = table.pages.shape[-1], tail_key.shape[2]
    half, repeats = cos.shape[1], heads // groups
    cos, sin = cos.contiguous(), sin.contiguous()

    tiles = tiles_for(rows * repeats, max(dim, values), query.element_size())
    n_programs = batch * groups * triton.cdiv(rows * repeats, tiles.rows)
    n_tiles = triton.cdiv(n_entries * size, tiles.keys) + triton.cdiv(room, tiles.keys)
    splits = splits_for(n_programs, n_tiles, query.device)

    out = tail_value.new_empty(batch, rows, heads, values)
    parts, lse = out[None], None
    if splits > 1:
        parts = out.new_empty(splits, *out.shape, dtype=torch.float32)
        lse = out.new_empty(splits, batch, rows, heads, dtype=torch.float32)
    part_s, part_b, part_q, part_h, _ = parts.stride()
    overlapped = splits > 1 and overlaps(query.device)
    with torch.cuda.device_of(query):
        _attend_kernel[(n_programs, splits)](
            query, key_pages, value_pages, table.pages, table.starts, table.total, tail_key, tail_value,
            n_tail, cos, sin, sinks, parts, lse,
            groups, rows, n_entries, cos.shape[0], scaling,
            *query.stride(), *key_pages.stride(), *value_pages.stride(), *tail_key.stride(), *tail_value.stride(),
            part_s, part_b, part_h, part_q, *table.steps(n_entries), *table.steps(1),
            REPEATS=repeats, SIZE=size, BLOCK_M=tiles.rows, BLOCK_N=tiles.keys,
            DIM=dim, VALUE_DIM=values, VALUES=_padded(values), HALF=half, PAIRS=_padded(half),
            REST=_padded(dim - 2 * half), INTERLEAVED=interleaved, SLIDING=sliding_window or 0, SOFTCAP=softcap or 0.0,
            INTERPRETED=INTERPRETED, OVERLAPPED=overlapped, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        if lse is not None:
            n_rows = batch * rows * heads
            _merge_kernel[(n_rows,)](
                parts, lse, out, splits, n_rows, values, _padded(values), next_power(splits), overlapped,
                num_warps=4, launch_pdl=overlapped,
            )  # fmt: skip
    return out.transpose(1, 2)
