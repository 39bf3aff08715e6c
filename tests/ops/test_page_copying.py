"""Copying pages: both implementations against a loop over single pages; what a kernel cannot read is said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reattention_kernels.page_copying.reference import copy_pages as reference
from reattention_kernels.page_copying.triton_kernel import copy_pages as kernel
from tests.ops.devices import both

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@both(reference, kernel)
@pytest.mark.parametrize(("groups", "size", "dim"), [(1, 4, 6), (3, 32, 64), (2, 32, 80)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_named_pages_arrive_and_all_others_stay(
    device: str, operation: Callable[..., Any], groups: int, size: int, dim: int, dtype: torch.dtype
) -> None:
    # Views of larger stores, with more pages than programs.
    source = torch.randn(groups, 300, size, dim).to(dtype)[:, 3:]
    before = torch.randn(groups, 120, size, dim, device=device).to(dtype)
    pages = torch.randperm(297)[:100]
    places = torch.randperm(109)[:100]
    expected = before[:, 1:110].clone()
    for place, page in zip(places.tolist(), pages.tolist(), strict=True):
        expected[:, place] = source[:, page].to(device)
    for given in (source.to(device), source.pin_memory() if device == "cuda" else source):
        target = before.clone()[:, 1:110]
        operation(target, places.to(device), given, pages.to(device))
        assert torch.equal(target, expected)


@both(reference, kernel)
def test_no_pages(device: str, operation: Callable[..., Any]) -> None:
    target, none = torch.randn(2, 5, 32, 8, device=device), torch.empty(0, dtype=torch.int64, device=device)
    before = target.clone()
    operation(target, none, torch.randn(2, 9, 32, 8, device=device), none)
    assert torch.equal(target, before)


def test_what_the_kernel_cannot_copy_is_refused() -> None:
    pages, target = torch.zeros(1, dtype=torch.int64), torch.zeros(2, 5, 32, 8)
    with pytest.raises(NotImplementedError, match="another type"):
        kernel(target, pages, torch.zeros(2, 5, 32, 8, dtype=torch.bfloat16), pages)
    with pytest.raises(NotImplementedError, match="side by side"):
        kernel(target, pages, torch.zeros(2, 5, 8, 32).transpose(2, 3), pages)
