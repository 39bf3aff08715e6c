"""What every Triton launch here needs to know of the machine; knows no operation."""

import os
from functools import lru_cache

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run on the CPU, line by line, in Triton's interpreter: for tests."""

SPARE = 4096
"""Bytes of shared memory left for what the compiler adds: barriers and scratch."""


def next_power(n: int) -> int:
    """The smallest power of two that is at least `n`: what Triton's blocks must measure, and what sizes are rounded to."""
    return 1 << max(n - 1, 0).bit_length()


def stages(device: torch.device, each: int, fixed: int, most: int = 3) -> int:
    """How many tiles can be on their way from memory at once: as many as shared memory holds, at least one.

    Args:
        device: the GPU.
        each: bytes of one tile.
        fixed: bytes that stay in shared memory besides.
        most: more would not help.
    """
    if INTERPRETED:
        return 1
    return max(1, min(most, (_shared_memory(device) - SPARE - fixed) // each))


@lru_cache
def overlaps(device: torch.device) -> bool:
    """Whether a kernel may be launched while the one before it still runs (programmatic dependent launch).

    Such a kernel waits (`gdc_wait`) before it reads what the one before it writes.
    """
    return not INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache
def _shared_memory(device: torch.device) -> int:
    # torch's own annotations leave it out.
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]
