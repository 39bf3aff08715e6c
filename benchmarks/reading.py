"""Reads selected pages and does nothing else: what any attention over them must wait for; knows no queries."""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import INTERPRETED, next_power


def read_pages(key: torch.Tensor, value: torch.Tensor, pages: torch.Tensor, programs: int) -> torch.Tensor:
    """Sums of the numbers of some pages, by about so many programs: [programs] float32.

    Args:
        key: [G, P, T, D], pages that lie side by side within a head.
        value: likewise.
        pages: [n] int32.
        programs: a multiple of G.
    """
    groups, _, size, dim = key.shape
    each = triton.cdiv(len(pages), max(programs // groups, 1))
    splits = triton.cdiv(len(pages), each)
    sums = torch.empty(groups, splits, device=key.device)
    _read_kernel[(groups, splits)](
        key, value, pages, sums, len(pages), each, key.stride(0), value.stride(0),
        PAGE=size * dim, AT_ONCE=min(4, next_power(each)), num_warps=4, num_stages=1 if INTERPRETED else 3,
    )  # fmt: skip
    return sums


@triton.jit
def _read_kernel(
    key, value, pages, sums, n_pages, each, key_group, value_group, PAGE: tl.constexpr, AT_ONCE: tl.constexpr
):
    group, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key += group * key_group
    value += group * value_group
    numbers = tl.arange(0, PAGE)[None, :]
    total = tl.zeros((AT_ONCE, PAGE), tl.float32)
    for nth in range(0, each, AT_ONCE):
        entry = split * each + nth + tl.arange(0, AT_ONCE)
        inside = (entry < n_pages) & (nth + tl.arange(0, AT_ONCE) < each)
        at = tl.load(pages + entry, mask=inside, other=0).to(tl.int64)[:, None] * PAGE + numbers
        read = tl.load(key + at, mask=inside[:, None], other=0.0).to(tl.float32)
        total += read + tl.load(value + at, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(sums + group * tl.num_programs(1) + split, tl.sum(total))
