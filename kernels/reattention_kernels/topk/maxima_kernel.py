"""The largest score of every block of keys, in Triton; does not know which keys they belong to.

One matrix product whose scores never leave the registers, exact or, with an index, in 8 bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.launch import INTERPRETED, next_power, stages
from reattention_kernels.topk.tile_kernel import of_blocks_by_page, of_blocks_in_pairs

PAGE = tl.constexpr(32)
"""Keys that share a scale in an index."""
SPAN = 512
"""Keys whose best is kept besides, so that few numbers tell which blocks are worth a look; a multiple of every tile."""


class Shape(NamedTuple):
    """How a launch is cut up, as measured on an H100.

    Attributes:
        rows: queries scored at a time.
        tile: keys scored at a time.
        block: keys that share a maximum. Small blocks are quick to score again, large ones make fewer maxima to store.
        warps: of 32 threads.
        stages: tiles on their way from memory.
    """

    rows: int
    tile: int
    block: int
    warps: int
    stages: int


def shape_for(dim: int, n: int, indexed: bool, in_float32: bool) -> Shape:
    """How to cut up `n` keys of `dim` numbers, scored by their index, in float32, or in the 16 bits they have."""
    if in_float32 and not indexed:
        # Without tensor cores; small enough for the 99 KiB of shared memory that every GPU has.
        return Shape(32, 64, 64 if n >= 1 << 19 else 32, 4, 2)
    if dim <= 64:
        return Shape(128, 128, 128 if n >= 1 << 19 else 64, 4, 3)
    if indexed:
        return Shape(128, 128, 128 if n >= 1 << 19 else 32, 8, 3)
    return Shape(128, 64, 64 if n >= 1 << 19 else 32, 4, 4)


def exact_in_float32(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether products must be taken in float32, since the two types differ or are float32."""
    return query.dtype != key.dtype or query.dtype == torch.float32


def block_maxima(
    query: torch.Tensor,
    key: torch.Tensor,
    allowed: torch.Tensor | None,
    index: KeyIndex | None,
    shape: Shape,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest score of each block and of each span of keys: [B·G, blocks, R] and [B·G, spans, R] float32."""
    sets, rows, dim = query.shape
    groups, n = key.shape[1], key.shape[2]
    tiles = triton.cdiv(n, shape.tile)
    maxima = torch.empty(sets, tiles * (shape.tile // shape.block), rows, device=query.device)
    together = SPAN // shape.tile
    tops = torch.empty(sets, triton.cdiv(tiles, together), rows, device=query.device)
    height = min(shape.rows, max(16, next_power(rows)))
    row_blocks = triton.cdiv(rows, height)
    # Enough programs to fill a large GPU several times over; each walks its share of the tiles.
    splits = min(tiles, max(1, triton.cdiv(2048, row_blocks * sets)))
    scored, scale = (key, query) if index is None else (index.codes.flatten(1, 2)[None], index.scale.contiguous())
    narrow = scored.dtype == torch.float8_e4m3fn and not INTERPRETED and dim <= 128
    asked = query if index is None else _coded(query, scored.dtype)
    width = next_power(max(dim, 32))
    fetched = _descriptor(scored, shape.tile, width)
    _maxima_kernel[(row_blocks, sets, splits)](
        asked,
        scored if fetched is None else fetched,
        scale,
        _units(scale, allowed) if narrow else scale,
        allowed if allowed is not None else query,
        maxima,
        tops,
        rows,
        n,
        groups,
        triton.cdiv(triton.cdiv(tiles, splits), together) * together,
        asked.stride(0),
        scored.stride(0),
        scored.stride(1),
        scored.stride(2),
        scale.stride(0) if index is not None else 0,
        dim=dim,
        DIM=width,
        HEIGHT=height,
        WIDTH=shape.tile,
        SUB=shape.block,
        TOGETHER=together,
        MASKED=allowed is not None,
        INDEXED=index is not None,
        DESCRIBED=fetched is not None,
        # Mixed types are multiplied in float32, and float32 itself without the tensor cores' rounding; so is everything in
        # the interpreter, which cannot multiply bfloat16.
        AS_FLOAT=exact_in_float32(asked, scored) or (INTERPRETED and asked.dtype != torch.int8),
        LOWEST=-(2**31) if scored.dtype == torch.int8 else float("-inf"),
        NARROW=narrow,
        num_warps=shape.warps,
        num_stages=stages(
            query.device, shape.tile * width * scored.itemsize, height * width * asked.itemsize, shape.stages
        ),
    )
    return maxima, tops


def _units(scale: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """The largest scale [G] of pages that hold a key which may be chosen: what others hold may be anything."""
    if allowed is not None:
        pages = pad(allowed, (0, -len(allowed) % PAGE.value)).view(-1, PAGE.value).any(1)
        scale = scale[:, : len(pages)].where(pages, 0.0)
    return scale.amax(1).clamp(min=1e-30)


def _descriptor(key: torch.Tensor, tile: int, width: int) -> TensorDescriptor | None:
    """Keys as the tensor memory accelerator fetches them, [G, N, D] in tiles, where the GPU has one and the keys suit it.

    What lies beyond N or D comes as zeros.
    """
    if INTERPRETED or torch.cuda.get_device_capability(key.device) < (9, 0) or key.shape[0] != 1:
        return None
    strides = [key.stride(1), key.stride(2), 1]
    if key.data_ptr() % 16 or any(stride * key.itemsize % 16 for stride in strides[:2]):
        return None
    return TensorDescriptor(key, list(key.shape[1:]), strides, [1, tile, width])


def _coded(query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Queries [B·G, R, D] in 8 bits, each row scaled to the type's range: a factor on a row does not change its order."""
    sets, rows, dim = query.shape
    coded = torch.empty(sets, rows, dim, dtype=dtype, device=query.device)
    top = 127.0 if dtype == torch.int8 else 1.0
    _code_kernel[(rows, sets)](
        query,
        coded,
        rows,
        query.stride(0),
        top,
        dim=dim,
        DIM=next_power(dim),
        WHOLE_NUMBERS=dtype == torch.int8,
        num_warps=1,
    )
    return coded


@triton.jit
def _code_kernel(
    query, coded, n_rows, query_set, top, dim: tl.constexpr, DIM: tl.constexpr, WHOLE_NUMBERS: tl.constexpr
):
    row, own, dims = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, DIM)
    q = tl.load(query + own * query_set + row * dim + dims, mask=dims < dim, other=0.0).to(tl.float32)
    scaled = q * (top / tl.maximum(tl.max(tl.abs(q), 0), 1e-30))
    if WHOLE_NUMBERS:
        scaled = tl.floor(scaled + 0.5)
    tl.store(coded + (own * n_rows + row) * dim + dims, scaled.to(coded.dtype.element_ty), mask=dims < dim)


@triton.jit
def _maxima_kernel(
    query,
    key,
    scale,
    units,
    allowed,
    maxima,
    tops,
    n_rows,
    n_keys,
    groups,
    tiles_each,
    query_set,
    key_batch,
    key_group,
    key_token,
    scale_group,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SUB: tl.constexpr,
    TOGETHER: tl.constexpr,
    MASKED: tl.constexpr,
    INDEXED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    AS_FLOAT: tl.constexpr,
    LOWEST: tl.constexpr,
    NARROW: tl.constexpr,
):
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    own = tl.program_id(1).to(tl.int64)
    group = own % groups
    dims = tl.arange(0, DIM)
    kept = (rows < n_rows)[:, None] & (dims < dim)[None, :]
    q = tl.load(query + own * query_set + rows[:, None] * dim + dims[None, :], mask=kept, other=0.0)
    if AS_FLOAT:
        q = q.to(tl.float32)
    n_tiles = tl.cdiv(n_keys, WIDTH)
    first = tl.program_id(2) * tiles_each
    last = tl.minimum(first + tiles_each, n_tiles)
    whole = tl.minimum(last, n_keys // WIDTH)
    if not DESCRIBED:
        key = key + own // groups * key_batch + group * key_group
    scale += group * scale_group
    unit = 1.0
    if NARROW:
        unit = 1.0 / tl.load(units + group)
    # What stands beside the keys is fetched a tile ahead, so that no tile waits for it.
    seen, factor = _beside(allowed, scale, unit, first, n_keys, WIDTH, MASKED, INDEXED, NARROW)
    tops += own * tl.cdiv(n_tiles, TOGETHER) * n_rows + rows
    best = tl.full((HEIGHT,), float("-inf"), tl.float32)
    for tile in range(first, whole):
        seen_next, factor_next = _beside(allowed, scale, unit, tile + 1, n_keys, WIDTH, MASKED, INDEXED, NARROW)
        top = _score_tile(
            q, key, maxima, tile, seen, factor, rows, own, group, n_rows, n_keys, n_tiles, key_token,
            dim, DIM, HEIGHT, WIDTH, SUB, MASKED, INDEXED, DESCRIBED, AS_FLOAT, LOWEST, NARROW,
        )  # fmt: skip
        best = _span(best, top, tops, tile, last, rows, n_rows, TOGETHER)
        seen, factor = seen_next, factor_next
    for tile in range(tl.maximum(first, whole), last):
        seen, factor = _beside(allowed, scale, unit, tile, n_keys, WIDTH, MASKED, INDEXED, NARROW)
        seen = seen & (tile * WIDTH + tl.arange(0, WIDTH) < n_keys)
        top = _score_tile(
            q, key, maxima, tile, seen, factor, rows, own, group, n_rows, n_keys, n_tiles, key_token,
            dim, DIM, HEIGHT, WIDTH, SUB, True, INDEXED, DESCRIBED, AS_FLOAT, LOWEST, NARROW,
        )  # fmt: skip
        best = _span(best, top, tops, tile, last, rows, n_rows, TOGETHER)


@triton.jit
def _span(best, top, tops, tile, last, rows, n_rows, TOGETHER: tl.constexpr):
    """The best of a span so far, with a tile's; stored, and begun anew, behind the span's last tile."""
    best = tl.maximum(best, top)
    ended = ((tile + 1) % TOGETHER == 0) | (tile + 1 == last)
    tl.store(tops + tile // TOGETHER * n_rows, best, mask=(rows < n_rows) & ended)
    return tl.where(ended, float("-inf"), best)


@triton.jit
def _beside(
    allowed, scale, unit, tile, n_keys,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, INDEXED: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Which keys of a tile may be chosen [WIDTH], and the scales of its pages [WIDTH // PAGE]."""
    tokens = tile * WIDTH + tl.arange(0, WIDTH)
    pages = tile * (WIDTH // PAGE) + tl.arange(0, WIDTH // PAGE)
    seen = tokens >= 0
    factor = tl.full((WIDTH // PAGE,), 1.0, tl.float32)
    if MASKED:
        seen = tl.load(allowed + tokens, mask=tokens < n_keys, other=0) != 0
    if INDEXED:
        factor = tl.load(scale + pages, mask=pages * PAGE < n_keys, other=1.0)
    if NARROW:
        # As a part of the largest scale, which half precision holds; a factor on all keys does not change their order.
        factor = tl.maximum(factor * unit, 0.0001)
    return seen, factor


@triton.jit
def _score_tile(
    q,
    key,
    maxima,
    tile,
    seen,
    factor,
    rows,
    own,
    group,
    n_rows,
    n_keys,
    n_tiles,
    key_token,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SUB: tl.constexpr,
    HIDING: tl.constexpr,
    INDEXED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    AS_FLOAT: tl.constexpr,
    LOWEST: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Score one tile of keys and store the maxima of its blocks; the tile's own, [HEIGHT]."""
    dims = tl.arange(0, DIM)
    if DESCRIBED:
        k = tl.reshape(key.load([group.to(tl.int32), tile * WIDTH, 0]), (WIDTH, DIM))
    else:
        # A key beyond the last is read as the last and hidden below: cheaper than a mask on every load.
        where = tl.minimum(tile * WIDTH + tl.arange(0, WIDTH), n_keys - 1).to(tl.int64) * key_token
        at = key + where[:, None] + dims[None, :]
        if DIM == dim:
            k = tl.load(at)
        else:
            k = tl.load(at, mask=(dims < dim)[None, :], other=0.0)
    if AS_FLOAT:
        scores = tl.dot(q, tl.trans(k.to(tl.float32)), input_precision="ieee")
    elif NARROW:
        scores = tl.dot(q, tl.trans(k), out_dtype=tl.float16)
    else:
        scores = tl.dot(q, tl.trans(k))
    if HIDING:
        scores = tl.where(seen[None, :], scores, LOWEST)
    if NARROW:
        best = of_blocks_in_pairs(scores, factor, HEIGHT, WIDTH, SUB, PAGE)
    elif INDEXED:
        best = of_blocks_by_page(scores, factor, HEIGHT, WIDTH, SUB, PAGE, HIDING, LOWEST)
    else:
        best = tl.max(tl.reshape(scores, (HEIGHT, WIDTH // SUB, SUB)), 2)
    inside = rows < n_rows
    out = ((own * n_tiles + tile) * (WIDTH // SUB) + tl.arange(0, WIDTH // SUB)) * n_rows
    tl.store(maxima + out[None, :] + rows[:, None], best, mask=inside[:, None])
    return tl.max(best, 1)
