"""Softmax mass of every page for a short question, in Triton; knows neither positions nor documents.

One launch reads the keys once and leaves every row's mass of every page, beside the sum of its share of the pages; a small
one works out what makes each row's masses sum to 1; the third averages over the question's tokens. Heads that nobody asks
for are not scored.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.launch import INTERPRETED, next_power, stages

TILE = 128
"""Keys scored at a time."""
PROGRAMS = 2112
"""The pages are shared among about this many programs: enough to fill a large GPU several times over."""
LARGE = tl.constexpr(2.0**112)
"""Where a share's total is counted again from a higher base: totals of all shares must add up in float32."""
PASSES = tl.constexpr(150)
"""Enough for scores 11,000 nats apart; an infinite score stays infinite, and its rows become NaN."""
LOG2E = 1.4426950408889634
"""Exponentials are taken in base 2, where they are one instruction."""


class Cut(NamedTuple):
    """How the work is cut.

    Attributes:
        height: rows of the question in one matrix product, a power of two from 16 on.
        blocks: such products with each tile of keys.
        width: keys of a tile, at least.
        warps: warps of a program.
        stages: tiles of keys that are loaded ahead at most.
        masses: type in which a row's mass of a page is kept.
        mixed: every fourth exponential is a polynomial.
    """

    height: int
    blocks: int
    width: int
    warps: int
    stages: int
    masses: torch.dtype
    mixed: bool


def cut_for(rows: int, dim: int, in_float32: bool) -> Cut:
    """How to cut `rows` rows that are scored with keys of `dim` dimensions."""
    height = max(16, next_power(rows))
    if in_float32 and dim > 64:
        # Without tensor cores; small enough for the 99 KiB of shared memory that every GPU has.
        return Cut(min(height, 32), 1, 32, 4, 3, torch.float32, False)
    if dim > 64:
        return Cut(min(height, 64), 1, 128, 4, 3, torch.float32, False)
    return Cut(min(height, 128), 1, 64, 4, 3, torch.float32, False)


class _Rows(NamedTuple):
    """Which rows of the question are scored with which key head.

    Attributes:
        groups: [S] int32, the key heads that are read.
        rows: [S, R] int32, the rows h * Q + q scored with each of them; -1 fills up.
        places: [W, 2] int32, of every wanted head, where its key head stands in `groups` and its first row in `rows`.
    """

    groups: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor


def page_evidence(
    query: torch.Tensor,
    key: torch.Tensor | KeyIndex,
    filled: torch.Tensor,
    scaling: float,
    heads: Sequence[int] | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operation of `evidence.reference.page_evidence`, on a GPU."""
    codes, scale = (key.codes, key.scale) if isinstance(key, KeyIndex) else (key, None)
    every, rows, dim = query.shape
    groups, pages, size, _ = codes.shape
    if TILE % size:
        raise NotImplementedError(f"pages of {size} tokens: the kernel reads tiles of {TILE}")
    if pages * size * dim >= 2**31:
        raise NotImplementedError(f"{pages * size:,} keys of {dim} numbers: the kernel counts to 2**31")
    wanted = tuple(range(every)) if heads is None else tuple(heads)
    mean = torch.zeros(len(wanted), pages, device=query.device)
    if not wanted or not pages or not rows:
        return mean
    # Pages may be a slice of more; within a key head they lie side by side.
    codes = codes if codes[0].is_contiguous() else codes.contiguous()
    scale = scale if scale is None or scale.stride(1) == 1 else scale.contiguous()
    filled, weights = filled.contiguous(), weights if weights is None else weights.contiguous()
    in_float32 = scale is None and (query.dtype != codes.dtype or query.dtype == torch.float32)
    plan = _rows_of(wanted, rows, every // groups, query.device)
    wide, sets = plan.rows.shape[1], len(plan.groups)
    cut = cut_for(wide, dim, in_float32)
    width = max(size, cut.width)
    row_blocks = triton.cdiv(wide, cut.blocks * cut.height)
    padded = row_blocks * cut.blocks * cut.height
    tiles = triton.cdiv(pages * size, width)
    # Each program walks a share of the tiles, a power of two of them.
    each = next_power(triton.cdiv(tiles, max(1, triton.cdiv(PROGRAMS, sets * row_blocks))))
    splits, together = triton.cdiv(tiles, each), min(64, each * (width // size))
    masses = torch.empty(sets, pages, padded, device=query.device, dtype=cut.masses)
    totals, bases = torch.empty(2, sets, splits, padded, device=query.device)
    _page_masses[(row_blocks, sets, splits)](
        (query if scale is None else query.to(torch.bfloat16)).contiguous(),
        codes,
        scale if scale is not None else masses,
        filled,
        plan.groups,
        plan.rows,
        masses,
        totals,
        bases,
        wide,
        pages,
        each,
        scaling * LOG2E,
        codes.stride(0),
        scale.stride(0) if scale is not None else 0,
        dim=dim,
        DIM=next_power(max(dim, 16)),
        HEIGHT=cut.height,
        BLOCKS=cut.blocks,
        WIDTH=width,
        SIZE=size,
        EVEN=pages * size % width == 0,
        INDEXED=scale is not None,
        # Mixed types and float32 are multiplied in float32; the interpreter cannot multiply bfloat16.
        AS_FLOAT=INTERPRETED or in_float32,
        MIXED=cut.mixed,
        INTERPRETED=INTERPRETED,
        num_warps=cut.warps,
        num_stages=stages(
            query.device,
            width * next_power(dim) * codes.itemsize,
            cut.blocks * cut.height * next_power(dim) * query.itemsize,
            cut.stages,
        ),
    )
    factors = torch.empty_like(bases)
    _row_factors[(padded // 4, sets)](totals, bases, factors, splits, padded, SPLITS=next_power(splits), ROWS=4)
    _mean_mass[(triton.cdiv(pages, together), len(wanted))](
        masses,
        factors,
        plan.places,
        weights if weights is not None else masses,
        mean,
        rows,
        pages,
        splits,
        each * (width // size),
        padded,
        ROWS=next_power(rows),
        PAGES=together,
        WEIGHTED=weights is not None,
        num_warps=4,
    )
    return mean


@lru_cache(maxsize=64)
def _rows_of(heads: tuple[int, ...], rows: int, repeats: int, device: torch.device) -> _Rows:
    """Gather the wanted heads by the key head they read."""
    groups = sorted({head // repeats for head in heads})
    members = [[head for head in heads if head // repeats == group] for group in groups]
    longest = max(map(len, members)) * rows
    listed = [[head * rows + row for head in own for row in range(rows)] for own in members]
    places = [(groups.index(h // repeats), members[groups.index(h // repeats)].index(h) * rows) for h in heads]
    with torch.inference_mode(False):
        return _Rows(
            torch.tensor(groups, dtype=torch.int32, device=device),
            torch.tensor([own + [-1] * (longest - len(own)) for own in listed], dtype=torch.int32, device=device),
            torch.tensor(places, dtype=torch.int32, device=device),
        )


@triton.jit
def _power(x, MIXED: tl.constexpr, INTERPRETED: tl.constexpr):
    """2 ** x; results below 2 ** -126 are 0 or thereabouts."""
    if INTERPRETED:
        return tl.exp2(x)
    elif MIXED:
        # A GPU has one unit for exponentials to eight for products: of four, one is a polynomial of degree 4, good to 3e-6.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 x, n, f, p;
            .reg .b32 i, j;
            ex2.approx.ftz.f32 $0, $4;
            ex2.approx.ftz.f32 $1, $5;
            ex2.approx.ftz.f32 $2, $6;
            max.NaN.f32 x, $7, 0fC2FC0000;
            min.NaN.f32 x, x, 0f42FE0000;
            add.rn.f32 n, x, 0f4B400000;
            sub.rn.f32 f, n, 0f4B400000;
            sub.rn.f32 f, x, f;
            fma.rn.f32 p, f, 0f3C1D015B, 0f3D64FE22;
            fma.rn.f32 p, p, f, 0f3E7601BC;
            fma.rn.f32 p, p, f, 0f3F317096;
            fma.rn.f32 p, p, f, 0f3F800000;
            mov.b32 i, n;
            shl.b32 i, i, 23;
            mov.b32 j, p;
            add.s32 j, j, i;
            mov.b32 $3, j;
            }
            """,
            "=f,=f,=f,=f,f,f,f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _page_masses(
    query, key, scale, filled, groups, listed, masses, totals, bases,
    n_rows, n_pages, tiles_each, sharpness, key_group, scale_group,
    dim: tl.constexpr, DIM: tl.constexpr, HEIGHT: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    SIZE: tl.constexpr, EVEN: tl.constexpr, INDEXED: tl.constexpr, AS_FLOAT: tl.constexpr, MIXED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Masses of BLOCKS * HEIGHT rows over a share of the tiles of keys."""
    PAGES: tl.constexpr = WIDTH // SIZE
    padded = tl.num_programs(0) * BLOCKS * HEIGHT
    own, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    group = tl.load(groups + own).to(tl.int64)
    dims, columns, of_tile = tl.arange(0, DIM), tl.arange(0, WIDTH), tl.arange(0, PAGES)
    slots = tl.program_id(0) * BLOCKS * HEIGHT + tl.arange(0, HEIGHT)
    questions = ()
    for block in tl.static_range(BLOCKS):
        slot = slots + block * HEIGHT
        rows = tl.load(listed + own * n_rows + slot, mask=slot < n_rows, other=-1)
        kept = (rows >= 0)[:, None] & (dims < dim)[None, :]
        q = tl.load(query + rows.to(tl.int64)[:, None] * dim + dims[None, :], mask=kept, other=0.0)
        if AS_FLOAT:
            q = q.to(tl.float32)
        questions = questions + (q,)
    first = split * tiles_each
    last = tl.minimum(first + tiles_each, tl.cdiv(n_pages, PAGES))
    # Masses are kept in units of 2 ** base, base being the best score of the first tile that holds a key: then no maximum is
    # needed of any other. What is 2 ** 126 smaller than that key is nothing in float32 anyway; where the total is
    # too large, the row is counted again from a higher base.
    key += group * key_group
    scale += group * scale_group
    probe = first
    there = _count(filled, probe, of_tile, n_pages, PAGES)
    while (probe < last - 1) & (tl.max(there, 0) == 0):
        probe += 1
        there = _count(filled, probe, of_tile, n_pages, PAGES)
    k, factor = _keys(
        key, scale, probe, columns, dims, of_tile, n_pages, dim, DIM, WIDTH, SIZE, PAGES, EVEN, INDEXED, AS_FLOAT
    )
    seen = tl.arange(0, SIZE)[None, :] < there[:, None]
    nothing = tl.zeros((HEIGHT,), tl.float32)
    base, zeros = (), ()
    for block in tl.static_range(BLOCKS):
        scores = _scores(questions[block], k, factor, HEIGHT, SIZE, PAGES, INDEXED, AS_FLOAT)
        best = tl.max(tl.max(tl.where(seen[None, :, :], scores * sharpness, float("-inf")), 2), 1)
        base = base + (tl.where(best > float("-inf"), best, 0.0),)
        zeros = zeros + (nothing,)
    total = zeros
    passes, again = 0, 1
    while again > 0:
        total = zeros
        there = _count(filled, first, of_tile, n_pages, PAGES)
        for tile in range(first, last):
            # How full the next tile's pages are is fetched now, so that no tile waits for it.
            there_next = _count(filled, tile + 1, of_tile, n_pages, PAGES)
            k, factor = _keys(
                key, scale, tile, columns, dims, of_tile, n_pages, dim, DIM, WIDTH, SIZE, PAGES, EVEN, INDEXED, AS_FLOAT
            )
            pages = tile * PAGES + of_tile
            out = masses + (own * n_pages + pages) * padded
            grown = ()
            for block in tl.static_range(BLOCKS):
                scores = _scores(questions[block], k, factor, HEIGHT, SIZE, PAGES, INDEXED, AS_FLOAT)
                powers = _power(scores * sharpness - base[block][:, None, None], MIXED, INTERPRETED)
                mass = tl.sum(powers, 2)
                if tl.min(there, 0) < SIZE:
                    seen = tl.arange(0, SIZE)[None, :] < there[:, None]
                    mass = tl.sum(tl.where(seen[None, :, :], powers, 0.0), 2)
                place, stored = out[None, :] + (slots + block * HEIGHT)[:, None], mass.to(masses.dtype.element_ty)
                if EVEN:
                    tl.store(place, stored)
                else:
                    tl.store(place, stored, mask=(pages < n_pages)[None, :])
                grown = grown + (total[block] + tl.sum(mass, 1),)
            total = grown
            there = there_next
        passes += 1
        again = 0
        raised = ()
        for block in tl.static_range(BLOCKS):
            high = (total[block] > LARGE) & (passes < PASSES)
            again = tl.maximum(again, tl.max(high.to(tl.int32), 0))
            raised = raised + (tl.where(high, base[block] + 110.0, base[block]),)
        if again > 0:
            base = raised
    at = (own * tl.num_programs(2) + split) * padded + slots
    for block in tl.static_range(BLOCKS):
        tl.store(totals + at + block * HEIGHT, total[block])
        tl.store(bases + at + block * HEIGHT, base[block])


@triton.jit
def _count(filled, tile, of_tile, n_pages, PAGES: tl.constexpr):
    """Keys in each page of a tile."""
    pages = tile * PAGES + of_tile
    return tl.load(filled + pages, mask=pages < n_pages, other=0).to(tl.int32)


@triton.jit
def _keys(
    key, scale, tile, columns, dims, of_tile, n_pages,
    dim: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, PAGES: tl.constexpr,
    EVEN: tl.constexpr, INDEXED: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """A tile of keys [WIDTH, DIM], and what the scores of each of its pages are multiplied by."""
    tokens = tile * WIDTH + columns
    if not EVEN:
        # A key beyond the last page is read as the last and hidden by the count: cheaper than a mask on every load.
        tokens = tl.minimum(tokens, n_pages * SIZE - 1)
    at = key + tokens[:, None] * dim + dims[None, :]
    if DIM == dim:
        k = tl.load(at)
    else:
        k = tl.load(at, mask=(dims < dim)[None, :], other=0.0)
    factor = tl.zeros((PAGES,), tl.float32)
    if INDEXED:
        pages = tile * PAGES + of_tile
        factor = tl.load(scale + pages, mask=pages < n_pages, other=0.0)
    if AS_FLOAT:
        k = k.to(tl.float32)
    return k, factor


@triton.jit
def _scores(
    q, k, factor, HEIGHT: tl.constexpr, SIZE: tl.constexpr, PAGES: tl.constexpr, INDEXED: tl.constexpr,
    AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of keys by page, [HEIGHT, PAGES, SIZE]."""
    if AS_FLOAT:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    else:
        scores = tl.dot(q, tl.trans(k.to(q.dtype)))
    scores = tl.reshape(scores, (HEIGHT, PAGES, SIZE))
    if INDEXED:
        scores = scores * factor[None, :, None]
    return scores


@triton.jit
def _row_factors(totals, bases, factors, splits, padded, SPLITS: tl.constexpr, ROWS: tl.constexpr):
    """What each share's masses must be multiplied by, so that a row's sum to 1."""
    slots = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.arange(0, SPLITS)
    at = (tl.program_id(1) * splits + share[:, None]) * padded + slots[None, :]
    inside = (share < splits)[:, None] & (slots >= 0)[None, :]
    total = tl.load(totals + at, mask=inside, other=0.0)
    base = tl.where(total > 0, tl.load(bases + at, mask=inside, other=0.0), float("-inf"))
    highest = tl.max(base, 0)
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    unit = tl.exp2(base - highest[None, :])
    whole = tl.sum(total * unit, 0)
    factor = tl.where(whole > 0, 1.0 / whole, 0.0)
    tl.store(factors + at, unit * factor[None, :], mask=inside)


@triton.jit
def _mean_mass(
    masses, factors, places, weights, mean, n_rows, n_pages, splits, pages_each, padded,
    ROWS: tl.constexpr, PAGES: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    pages = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    head = tl.program_id(1)
    own = tl.load(places + head * 2).to(tl.int64)
    rows = tl.arange(0, ROWS)
    slots = tl.load(places + head * 2 + 1) + rows
    inside = (pages < n_pages)[:, None] & (rows < n_rows)[None, :]
    at = masses + (own * n_pages + pages[:, None]) * padded + slots[None, :]
    mass = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    # A program's pages all lie in one share.
    unit = (own * splits + tl.program_id(0) * PAGES // pages_each) * padded + slots
    factor = tl.load(factors + unit, mask=rows < n_rows, other=0.0)
    share = tl.sum(mass * factor[None, :], 1) / n_rows
    if WEIGHTED:
        share = share * tl.load(weights + head)
    tl.store(mean + head.to(tl.int64) * n_pages + pages, share, mask=pages < n_pages)
