"""Some pages to other places, one launch; knows what the reference knows.

The source may lie in pinned memory of the host, which a GPU reads over its bus as if it were its own. So no processor gathers
the pages first, and few programs are enough to keep the bus busy: the others stay free for the layer that is being worked out.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import next_power

PROGRAMS = 64
"""Programs at a time: each has a page or so on its way, and together they keep a bus busy."""

BLOCK = 4096
"""Elements that a program moves at a time, at most."""


@triton.jit
def _copy_kernel(
    target, places, source, pages, n, groups, target_g, target_p, source_g, source_p,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Page after page of one key-value head after another, each moved by one program."""
    for item in range(tl.program_id(0), n * groups, PROGRAMS):
        group, number = (item // n).to(tl.int64), item % n
        page, place = tl.load(pages + number), tl.load(places + number)
        begin, end = source + group * source_g + page * source_p, target + group * target_g + place * target_p
        for at in range(0, SIZE, BLOCK):
            own = at + tl.arange(0, BLOCK)
            tl.store(end + own, tl.load(begin + own, mask=own < SIZE), mask=own < SIZE)


def copy_pages(target: torch.Tensor, places: torch.Tensor, source: torch.Tensor, pages: torch.Tensor) -> None:
    """See the reference; a source on the host must be pinned."""
    if source.dtype != target.dtype or not (source[0].is_contiguous() and target[0].is_contiguous()):
        raise NotImplementedError("pages of another type, or that do not lie side by side")
    if target.is_cuda and not (source.is_cuda or source.is_pinned()):
        raise NotImplementedError("a GPU reads only pinned memory of the host")
    groups, _, size, dim = source.shape
    if not len(pages):
        return
    with torch.cuda.device_of(target):
        _copy_kernel[(PROGRAMS,)](
            target, places, source, pages, len(pages), groups,
            target.stride(0), target.stride(1), source.stride(0), source.stride(1),
            SIZE=size * dim, BLOCK=min(BLOCK, next_power(size * dim)), PROGRAMS=PROGRAMS, num_warps=8,
        )  # fmt: skip
