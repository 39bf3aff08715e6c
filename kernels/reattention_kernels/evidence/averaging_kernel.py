"""Averages of masses over a question's tokens, in Triton: each row's first made to sum to 1; does not know what was weighed."""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import next_power, overlaps

AVERAGED = 128
"""Pages whose masses a program averages at most."""


def averaged_masses(
    masses: torch.Tensor,
    totals: torch.Tensor,
    bases: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor | None,
    rows: int,
    pages_each: int,
) -> torch.Tensor:
    """Mean mass [W, P] float32 of each page for each wanted head.

    Args:
        masses: [S, P, padded], in units of 2 ** base of a row and a share of the pages.
        totals: [S, splits, padded] float32, a row's masses of a share.
        bases: [S, splits, padded] float32.
        places: [W, 2] int32, of every wanted head, which S it is of and its first row there.
        weights: [W] float32, a factor on each head; none when None.
        rows: of a head, those of the question.
        pages_each: pages of a share.
    """
    sets, pages, padded = masses.shape
    # A power of two of pages, and no more than a share has, so that a program's lie in two shares at most.
    together = min(AVERAGED, 1 << pages_each.bit_length() - 1)
    splits, overlapped = totals.shape[1], overlaps(masses.device)
    factors = torch.empty_like(bases)
    mean = torch.empty(len(places), pages, device=masses.device)
    _row_factors[(padded // 4, sets)](
        totals,
        bases,
        factors,
        splits,
        padded,
        SPLITS=next_power(splits),
        ROWS=4,
        OVERLAPPED=overlapped,
        launch_pdl=overlapped,
    )
    _mean_mass[(triton.cdiv(pages, together), len(places))](
        masses,
        factors,
        places,
        weights if weights is not None else masses,
        mean,
        rows,
        pages,
        splits,
        pages_each,
        padded,
        ROWS=next_power(rows),
        PAGES=together,
        WEIGHTED=weights is not None,
        ALIGNED=rows % 4 == 0,
        OVERLAPPED=overlapped,
        num_warps=4,
        launch_pdl=overlapped,
    )
    return mean


@triton.jit
def _row_factors(
    totals, bases, factors, splits, padded, SPLITS: tl.constexpr, ROWS: tl.constexpr, OVERLAPPED: tl.constexpr
):
    """What each share's masses must be multiplied by, so that a row's sum to 1."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
    ROWS: tl.constexpr, PAGES: tl.constexpr, WEIGHTED: tl.constexpr, ALIGNED: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        tl.extra.cuda.gdc_wait()
    pages = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    head = tl.program_id(1)
    own = tl.load(places + head * 2).to(tl.int64)
    rows, slot = tl.arange(0, ROWS), tl.load(places + head * 2 + 1)
    if ALIGNED:  # then four masses are loaded at a time
        slot, n_rows = tl.multiple_of(slot, 4), tl.multiple_of(n_rows, 4)
    slots = slot + rows
    inside = (pages < n_pages)[:, None] & (rows < n_rows)[None, :]
    mass = tl.load(masses + (own * n_pages + pages[:, None]) * padded + slots[None, :], mask=inside, other=0.0)
    # A program's pages lie in one share or two: no share is shorter than they are.
    share = tl.program_id(0) * PAGES // pages_each
    unit = factors + (own * splits + share) * padded + slots
    one = tl.load(unit, mask=rows < n_rows, other=0.0)
    other = tl.load(unit + padded, mask=(rows < n_rows) & (share + 1 < splits), other=0.0)
    factor = tl.where((pages < (share + 1) * pages_each)[:, None], one[None, :], other[None, :])
    average = tl.sum(mass.to(tl.float32) * factor, 1) / n_rows
    if WEIGHTED:
        average = average * tl.load(weights + head)
    tl.store(mean + head.to(tl.int64) * n_pages + pages, average, mask=pages < n_pages)
