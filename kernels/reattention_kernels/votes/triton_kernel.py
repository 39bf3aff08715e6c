"""The vote count of ReAttention, in Triton; knows only indices.

One launch counts all votes with integer atomics, whose sum does not depend on the order; torch's radix selection then
takes the most-voted bins. Nothing waits for the device, so a vote can stand in a CUDA graph.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.votes.reference import UNIT, kept


def most_voted(
    index: torch.Tensor, bins: int, clip: int, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation of `votes.reference.most_voted`, on a GPU."""
    index = index.contiguous()
    sets, n = index.shape
    votes = torch.zeros(sets, bins, dtype=torch.int64, device=index.device)
    if n:
        counted = index if weight is None else (weight.double() * UNIT).round().long().contiguous()
        _count_kernel[(triton.cdiv(n, 1024), sets)](
            index, counted, votes, n, bins, WEIGHED=weight is not None, SIZE=1024
        )
    return kept(votes, clip, weight is not None)


@triton.jit
def _count_kernel(index, weight, votes, n, bins, WEIGHED: tl.constexpr, SIZE: tl.constexpr):
    own = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    chosen = tl.load(index + own * n + at, mask=at < n, other=-1)
    if WEIGHED:
        votes_each = tl.load(weight + own * n + at, mask=at < n, other=0)
    else:
        votes_each = tl.full((SIZE,), 1, tl.int64)
    tl.atomic_add(votes + own * bins + chosen, votes_each, mask=chosen >= 0, sem="relaxed")
