"""Softmax mass of every page on a Hopper GPU, in Gluon: keys fetched once for all rows; knows what the Triton kernel knows.

A question's rows of a key head are up to 192. Where each block of 64 is a program of its own, keys pass three times from the
L2 cache, which is then what limits. Here they are three warp groups of one program. A warp of its own has the tensor memory
accelerator fetch tiles of keys into a ring; each group waits for a tile, starts the product with the next and meanwhile takes
the exponentials of the last. No group waits for another, so that one multiplies while another takes exponentials.
"""

from typing import NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton renamed it in 3.9; torch 2.11 comes with 3.6.
async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared

_ROWS = 64
"""Rows of a warp group: what its tensor cores multiply at a time."""
ROWS = gl.constexpr(_ROWS)
WIDTH = 64
"""Keys of a tile."""
STAGES = 4
"""Tiles that may be on their way or waiting to be read."""


class Cut(NamedTuple):
    """How the work is cut up, as measured on an H100.

    Attributes:
        groups: warp groups of a program at most.
        registers: of each thread of a group, the fetching warp giving up its own.
        launched: registers of a thread before they are given up: with few enough, two programs share a multiprocessor.
        programs: the pages are shared among about this many.
    """

    groups: int
    registers: int
    launched: int | None
    programs: int


CUTS = {128: Cut(3, 152, None, 264), 64: Cut(2, 96, 72, 264)}
"""By D."""


def suits(query: torch.Tensor, codes: torch.Tensor, wide: int) -> bool:
    """Whether this kernel takes `wide` rows of queries [H, Q, D] with keys [G, P, T, D], and is the faster one."""
    _, _, size, dim = codes.shape
    return (
        query.dtype == codes.dtype
        and query.dtype in (torch.bfloat16, torch.float16)
        and size == 32
        and dim in CUTS
        and wide > _ROWS
        and codes.stride(0) % dim == 0
        and codes.data_ptr() % 16 == 0
    )


def padded_rows(wide: int, dim: int) -> int:
    """Rows that are computed where `wide` are wanted."""
    together = _ROWS * _groups(wide, dim)
    return -(-wide // together) * together


def _groups(wide: int, dim: int) -> int:
    return min(CUTS[dim].groups, -(-wide // _ROWS))


def page_masses(
    query: torch.Tensor,
    codes: torch.Tensor,
    filled: torch.Tensor,
    heads: torch.Tensor,
    rows: torch.Tensor,
    masses: torch.Tensor,
    totals: torch.Tensor,
    bases: torch.Tensor,
    keys_each: int,
    sharpness: float,
) -> None:
    """What the Triton kernel `_page_masses` writes, but for rows whose total is too large: they must be counted again.

    Args:
        query: [H, Q, D].
        codes: [G, P, T, D], keys in pages that lie side by side within a head.
        filled: [P] int64.
        heads: [S] int32, the key heads that are read.
        rows: [S, R] int32, the rows of `query` scored with each; -1 fills up.
        masses: [S, P, padded] float32 or bfloat16.
        totals: [S, splits, padded] float32.
        bases: like `totals`.
        keys_each: keys of a share, a multiple of WIDTH.
        sharpness: factor on q·k before the exponential, which is of base 2.
    """
    groups, pages, size, dim = codes.shape
    wide = rows.shape[1]
    blocks, cut = _groups(wide, dim), CUTS[dim]
    number = gl.bfloat16 if codes.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([WIDTH, dim], number)
    # All heads as one list of keys: a head's begin at a multiple of its stride.
    stride = codes.stride(0) // dim
    keys = TensorDescriptor(codes, [(groups - 1) * stride + pages * size, dim], [dim, 1], [WIDTH, dim], layout)
    _masses_kernel[(masses.shape[2] // (blocks * _ROWS), len(heads), totals.shape[1])](
        query, keys, filled, heads, rows, masses, totals, bases, wide, pages, keys_each // WIDTH, sharpness, stride,
        DIM=dim, BLOCKS=blocks, WIDTH=WIDTH, SIZE=size, STAGES=STAGES, REGISTERS=cut.registers,
        num_warps=4, maxnreg=cut.launched,
    )  # fmt: skip


@gluon.jit
def _fetch(keys, ring, full, empty, begin, first, last, WIDTH: gl.constexpr, STAGES: gl.constexpr):
    """Have tiles of keys brought into the ring, each as soon as all groups have read what is in its place."""
    for tile in range(first, last):
        nth = tile - first
        stage = nth % STAGES
        mbarrier.wait(empty.index(stage), ((nth // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(stage), keys.block_type.nbytes)
        async_load(keys, [begin + tile * WIDTH, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _start(q, ring, full, nth, zeros, STAGES: gl.constexpr):
    """Begin the product with the nth tile, once it is there."""
    stage = nth % STAGES
    mbarrier.wait(full.index(stage), (nth // STAGES) & 1)
    return warpgroup_mma(q, ring.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _finish(product, empty, nth, STAGES: gl.constexpr):
    """Scores [ROWS, WIDTH] of the nth tile, whose place in the ring is free again."""
    scores = warpgroup_mma_wait(0, deps=[product])
    mbarrier.arrive(empty.index(nth % STAGES), count=1)
    return scores


@gluon.jit
def _count(filled, tile, of_tile, n_pages, PAGES: gl.constexpr):
    """Keys in each page of a tile."""
    pages = tile * PAGES + of_tile
    return gl.load(filled + pages, mask=pages < n_pages, other=0).to(gl.int32)


@gluon.jit
def _power(x, PURE: gl.constexpr):
    """2 ** x in one instruction, results below 2 ** -126 being 0."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=PURE, pack=1)


@gluon.jit
def _weigh(
    scores, base, sharp, there, tile, masses, n_pages, padded, slots, inside, of_tile, in_page,
    PAGES: gl.constexpr, SIZE: gl.constexpr,
):  # fmt: skip
    """Store the rows' masses of a tile's pages; their sum [ROWS]."""
    powers = gl.fma(scores.reshape([scores.shape[0], PAGES, SIZE]), sharp, -base[:, None, None])
    mass = gl.sum(_power(powers, True), 2)
    if gl.min(there, 0) < SIZE:
        seen = in_page[None, :] < there[:, None]
        # Not "pure": else the compiler would hide keys in every tile, and so take longer for all.
        mass = gl.sum(_power(gl.where(seen[None, :, :], powers, float("-inf")), False), 2)
    pages = tile * PAGES + of_tile
    at = pages.to(gl.int64) * padded
    stored = mass.to(masses.dtype.element_ty)
    gl.store(masses + at[None, :] + slots[:, None], stored, mask=(pages < n_pages)[None, :] & inside[:, None])
    return gl.sum(mass, 1)


@gluon.jit
def _consume(
    given,
    BLOCK: gl.constexpr,
    ROWS: gl.constexpr,
    WIDTH: gl.constexpr,
    SIZE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Masses of one warp group's rows over a share of the tiles."""
    (
        queries,
        ring,
        full,
        empty,
        filled,
        masses,
        totals,
        bases,
        first,
        last,
        n_pages,
        padded,
        begin,
        n_rows,
        sharpness,
    ) = given
    PAGES: gl.constexpr = WIDTH // SIZE
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    zeros = gl.zeros([ROWS, WIDTH], gl.float32, SCORES)
    parted = zeros.reshape([ROWS, PAGES, SIZE])
    PARTED: gl.constexpr = parted.type.layout
    slots = begin + BLOCK * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, gl.SliceLayout(2, PARTED)))
    of_tile = gl.arange(0, PAGES, layout=gl.SliceLayout(0, gl.SliceLayout(2, PARTED)))
    counted = gl.arange(0, PAGES, layout=gl.SliceLayout(1, gl.SliceLayout(0, PARTED)))
    in_page = gl.arange(0, SIZE, layout=gl.SliceLayout(0, gl.SliceLayout(0, PARTED)))
    inside = slots < n_rows
    sharp = parted + sharpness
    q = queries.index(BLOCK)
    # Masses are kept in units of 2 ** base, the best score of the first tile that holds a key; before it they are 0.
    tile = first
    there = _count(filled, tile, counted, n_pages, PAGES)
    scores = _finish(_start(q, ring, full, 0, zeros, STAGES), empty, 0, STAGES)
    base = gl.sum(gl.sum(parted, 2), 1)
    while (tile < last - 1) & (gl.max(there, 0) == 0):
        _weigh(scores, base, sharp, there, tile, masses, n_pages, padded, slots, inside, of_tile, in_page, PAGES, SIZE)
        tile += 1
        there = _count(filled, tile, counted, n_pages, PAGES)
        scores = _finish(_start(q, ring, full, tile - first, zeros, STAGES), empty, tile - first, STAGES)
    seen = in_page[None, :] < there[:, None]
    best = gl.where(seen[None, :, :], scores.reshape([ROWS, PAGES, SIZE]) * sharpness, float("-inf"))
    base = gl.max(gl.max(best, 2), 1)
    base = gl.where(base > float("-inf"), base, 0.0)
    total = gl.zeros_like(base)
    # Two tiles a turn, so that scores take turns in two sets of registers and are never moved between them.
    for here in range(tile + 1, last, 2):
        product = _start(q, ring, full, here - first, zeros, STAGES)
        there_next = _count(filled, here, counted, n_pages, PAGES)
        total += _weigh(
            scores, base, sharp, there, here - 1, masses, n_pages, padded, slots, inside, of_tile, in_page, PAGES, SIZE
        )
        other = _finish(product, empty, here - first, STAGES)
        if here + 1 < last:
            product = _start(q, ring, full, here + 1 - first, zeros, STAGES)
            there = _count(filled, here + 1, counted, n_pages, PAGES)
            total += _weigh(
                other,
                base,
                sharp,
                there_next,
                here,
                masses,
                n_pages,
                padded,
                slots,
                inside,
                of_tile,
                in_page,
                PAGES,
                SIZE,
            )
            scores = _finish(product, empty, here + 1 - first, STAGES)
        else:
            scores = other
            there = there_next
    total += _weigh(
        scores, base, sharp, there, last - 1, masses, n_pages, padded, slots, inside, of_tile, in_page, PAGES, SIZE
    )
    gl.store(totals + slots, total)
    gl.store(bases + slots, base)


@gluon.jit
def _masses_kernel(
    query, keys, filled, heads, listed, masses, totals, bases, n_rows, n_pages, tiles_each, sharpness, stride,
    DIM: gl.constexpr, BLOCKS: gl.constexpr, WIDTH: gl.constexpr, SIZE: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    own, split = gl.program_id(1).to(gl.int64), gl.program_id(2)
    padded = gl.num_programs(0) * BLOCKS * ROWS
    begin = gl.program_id(0) * BLOCKS * ROWS
    first = split * tiles_each
    last = gl.minimum(first + tiles_each, gl.cdiv(n_pages * SIZE, WIDTH))
    queries = gl.allocate_shared_memory(keys.dtype, [BLOCKS, ROWS, DIM], keys.layout)
    ring = gl.allocate_shared_memory(keys.dtype, [STAGES, WIDTH, DIM], keys.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=BLOCKS)
    LOADED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    dims = gl.arange(0, DIM, layout=gl.SliceLayout(0, LOADED))
    for block in gl.static_range(BLOCKS):
        slots = begin + block * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LOADED))
        rows = gl.load(listed + own * n_rows + slots, mask=slots < n_rows, other=-1)
        at = rows.to(gl.int64)[:, None] * DIM + dims[None, :]
        queries.index(block).store(gl.load(query + at, mask=(rows >= 0)[:, None], other=0.0))
    fence_async_shared()
    masses += own * n_pages * padded
    totals += (own * gl.num_programs(2) + split) * padded
    bases += (own * gl.num_programs(2) + split) * padded
    given = (
        queries, ring, full, empty, filled, masses, totals, bases, first, last, n_pages, padded, begin, n_rows, sharpness
    )  # fmt: skip
    fetched = (keys, ring, full, empty, gl.load(heads + own) * stride, first, last, WIDTH, STAGES)
    if BLOCKS == 2:
        gl.warp_specialize(
            [
                (_consume, (given, 0, ROWS, WIDTH, SIZE, STAGES)),
                (_consume, (given, 1, ROWS, WIDTH, SIZE, STAGES)),
                (_fetch, fetched),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (given, 0, ROWS, WIDTH, SIZE, STAGES)),
                (_consume, (given, 1, ROWS, WIDTH, SIZE, STAGES)),
                (_consume, (given, 2, ROWS, WIDTH, SIZE, STAGES)),
                (_fetch, fetched),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
