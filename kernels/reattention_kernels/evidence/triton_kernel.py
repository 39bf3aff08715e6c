"""Softmax mass of every page for a short question, in Triton; knows neither positions nor documents.

One launch reads the keys once and leaves every row's mass of every page, beside the sum of its share of the pages; two small
ones make averages of them (`averaging_kernel.py`). Heads that nobody asks for are not scored. On a Hopper GPU another kernel may
do the first of these, see `hopper_kernel.py`.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from reattention_kernels.evidence.averaging_kernel import averaged_masses
from reattention_kernels.key_index import KeyIndex
from reattention_kernels.launch import INTERPRETED, next_power, overlaps, stages

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
    if not wanted or not pages or not rows:
        return torch.zeros(len(wanted), pages, device=query.device)
    # Pages may be a slice of more; within a key head they lie side by side.
    codes = codes if codes[0].is_contiguous() else codes.contiguous()
    scale = scale if scale is None or scale.stride(1) == 1 else scale.contiguous()
    filled, weights = filled.contiguous(), weights if weights is None else weights.contiguous()
    in_float32 = scale is None and (query.dtype != codes.dtype or query.dtype == torch.float32)
    plan = _rows_of(wanted, rows, every // groups, query.device)
    wide = plan.rows.shape[1]
    sets, height = len(plan.groups), min(64 if dim > 64 else 128, max(16, next_power(wide)))
    width = max(size, 64)
    if in_float32 and dim > 64:
        # Without tensor cores; small enough for the 99 KiB of shared memory that every GPU has.
        height, width = min(height, 32), max(size, 32)
    padded = triton.cdiv(wide, height) * height
    query = (query if scale is None else query.to(torch.bfloat16)).contiguous()
    hopper = _on_hopper(query, codes, wide)
    if hopper is not None:
        height, padded = 64, hopper.padded_rows(wide, dim)
    row_blocks = triton.cdiv(padded, height)
    tiles = triton.cdiv(pages * size, width)
    # Each program walks a share of the tiles.
    programs = max(1, PROGRAMS // row_blocks) if hopper is None else hopper.CUTS[dim].programs
    each = max(2, triton.cdiv(tiles * sets, programs))
    splits = triton.cdiv(tiles, each)
    # In bfloat16 half the bytes are written and read again, for an error of 3e-4 of the result (RMS, a question of 40 tokens).
    kept = torch.float32 if query.dtype == torch.float32 or INTERPRETED else torch.bfloat16
    masses = torch.empty(sets, pages, padded, dtype=kept, device=query.device)
    totals, bases = torch.empty(2, sets, splits, padded, device=query.device)
    sharpness, overlapped = scaling * LOG2E, overlaps(query.device)
    if hopper is not None:
        hopper.page_masses(query, codes, filled, plan.groups, plan.rows, masses, totals, bases, each * width, sharpness)
    _page_masses[(row_blocks, sets, splits)](
        query,
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
        sharpness,
        codes.stride(0),
        scale.stride(0) if scale is not None else 0,
        dim=dim,
        DIM=next_power(max(dim, 16)),
        HEIGHT=height,
        WIDTH=width,
        SIZE=size,
        EVEN=pages * size % width == 0,
        INDEXED=scale is not None,
        # Mixed types and float32 are multiplied in float32; the interpreter cannot multiply bfloat16.
        AS_FLOAT=INTERPRETED or in_float32,
        AGAIN=hopper is not None,
        INTERPRETED=INTERPRETED,
        OVERLAPPED=overlapped,
        launch_pdl=overlapped and hopper is not None,
        num_warps=4,
        num_stages=stages(
            query.device, width * next_power(dim) * codes.itemsize, height * next_power(dim) * query.itemsize
        ),
    )
    return averaged_masses(masses, totals, bases, plan.places, weights, rows, each * (width // size))


def _on_hopper(query: torch.Tensor, codes: torch.Tensor, wide: int) -> ModuleType | None:
    """The kernel for Hopper GPUs, where it suits; imported only there, since older versions of Triton lack its language."""
    if INTERPRETED or torch.cuda.get_device_capability(codes.device)[0] != 9:
        return None
    hopper = import_module("reattention_kernels.evidence.hopper_kernel")
    return hopper if hopper.suits(query, codes, wide) else None


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
def _power(x, INTERPRETED: tl.constexpr):
    """2 ** x in one instruction, results below 2 ** -126 being 0."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _page_masses(
    query, key, scale, filled, groups, listed, masses, totals, bases,
    n_rows, n_pages, tiles_each, sharpness, key_group, scale_group,
    dim: tl.constexpr, DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr,
    INDEXED: tl.constexpr, AS_FLOAT: tl.constexpr, AGAIN: tl.constexpr, INTERPRETED: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()
        if AGAIN:
            tl.extra.cuda.gdc_wait()
    PAGES: tl.constexpr = WIDTH // SIZE
    slots = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    padded = tl.num_programs(0) * HEIGHT
    own, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    at = (own * tl.num_programs(2) + split) * padded + slots
    if AGAIN:
        # Another kernel has counted: what is left are rows whose totals are too large.
        left = tl.max((tl.load(totals + at) > LARGE).to(tl.int32), 0)
        if left == 0:
            return
    group = tl.load(groups + own).to(tl.int64)
    rows = tl.load(listed + own * n_rows + slots, mask=slots < n_rows, other=-1)
    dims, columns, of_tile = tl.arange(0, DIM), tl.arange(0, WIDTH), tl.arange(0, PAGES)
    kept = (rows >= 0)[:, None] & (dims < dim)[None, :]
    q = tl.load(query + rows.to(tl.int64)[:, None] * dim + dims[None, :], mask=kept, other=0.0)
    if AS_FLOAT:
        q = q.to(tl.float32)
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
    scores = _scores(
        q, key, scale, probe, columns, dims, of_tile, n_pages,
        dim, DIM, HEIGHT, WIDTH, SIZE, PAGES, EVEN, INDEXED, AS_FLOAT,
    )  # fmt: skip
    seen = tl.arange(0, SIZE)[None, :] < there[:, None]
    base = tl.max(tl.max(tl.where(seen[None, :, :], scores * sharpness, float("-inf")), 2), 1)
    base = tl.where(base > float("-inf"), base, 0.0)
    total = tl.zeros((HEIGHT,), tl.float32)
    passes, again = 0, 1
    while again > 0:
        total = tl.zeros((HEIGHT,), tl.float32)
        there = _count(filled, first, of_tile, n_pages, PAGES)
        for tile in range(first, last):
            # How full the next tile's pages are is fetched now, so that no tile waits for it.
            there_next = _count(filled, tile + 1, of_tile, n_pages, PAGES)
            scores = _scores(
                q, key, scale, tile, columns, dims, of_tile, n_pages,
                dim, DIM, HEIGHT, WIDTH, SIZE, PAGES, EVEN, INDEXED, AS_FLOAT,
            )  # fmt: skip
            powers = _power(scores * sharpness - base[:, None, None], INTERPRETED)
            mass = tl.sum(powers, 2)
            if tl.min(there, 0) < SIZE:
                seen = tl.arange(0, SIZE)[None, :] < there[:, None]
                mass = tl.sum(tl.where(seen[None, :, :], powers, 0.0), 2)
            there = there_next
            pages = tile * PAGES + of_tile
            out = (own * n_pages + pages) * padded
            if EVEN:
                tl.store(masses + out[None, :] + slots[:, None], mass.to(masses.dtype.element_ty))
            else:
                tl.store(
                    masses + out[None, :] + slots[:, None],
                    mass.to(masses.dtype.element_ty),
                    mask=(pages < n_pages)[None, :],
                )
            total += tl.sum(mass, 1)
        passes += 1
        high = (total > LARGE) & (passes < PASSES)
        again = tl.max(high.to(tl.int32), 0)
        base = tl.where(high, base + 110.0, base)
    tl.store(totals + at, total)
    tl.store(bases + at, base)


@triton.jit
def _count(filled, tile, of_tile, n_pages, PAGES: tl.constexpr):
    """Keys in each page of a tile."""
    pages = tile * PAGES + of_tile
    return tl.load(filled + pages, mask=pages < n_pages, other=0).to(tl.int32)


@triton.jit
def _scores(
    q, key, scale, tile, columns, dims, of_tile, n_pages,
    dim: tl.constexpr, DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
    PAGES: tl.constexpr, EVEN: tl.constexpr, INDEXED: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of keys by page, [HEIGHT, PAGES, SIZE]."""
    tokens = tile * WIDTH + columns
    if not EVEN:
        # A key beyond the last page is read as the last and hidden by the count: cheaper than a mask on every load.
        tokens = tl.minimum(tokens, n_pages * SIZE - 1)
    at = key + tokens[:, None] * dim + dims[None, :]
    if DIM == dim:
        k = tl.load(at)
    else:
        k = tl.load(at, mask=(dims < dim)[None, :], other=0.0)
    if AS_FLOAT:
        scores = tl.dot(q, tl.trans(k.to(tl.float32)), input_precision="ieee")
    else:
        scores = tl.dot(q, tl.trans(k.to(q.dtype)))
    scores = tl.reshape(scores, (HEIGHT, PAGES, SIZE))
    if INDEXED:
        pages = tile * PAGES + of_tile
        factor = tl.load(scale + pages, mask=pages < n_pages, other=0.0)
        scores = scores * factor[None, :, None]
    return scores
