"""Writing pages: the reference against slot-by-slot Python, the kernel against the reference, bit by bit."""

import math
from typing import Any

import pytest
import torch

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.launch import INTERPRETED
from reattention_kernels.page_writing.reference import write_pages as reference
from reattention_kernels.page_writing.triton_kernel import write_pages

on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def batch(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    new: torch.dtype = torch.float32,
    *,
    lengths: tuple[int, ...] = (7, 0, 4),
    first: tuple[int, ...] = (4, 9, 1),
    n: int = 7,
    size: int = 4,
    dim: int = 6,
    value_dim: int = 5,
    codes: torch.dtype | None = torch.int8,
) -> dict[str, Any]:
    """Arguments of the operation: pages are views of a larger allocation, keys are transposed, padding is NaN."""
    groups, n_pages = 2, max(f + -(-length // size) for f, length in zip(first, lengths, strict=True)) + 2

    def pages(width: int, dtype: torch.dtype) -> torch.Tensor:
        # torch makes no random numbers in 8 bits.
        return torch.randn(groups, n_pages + 2, size, width).to(dtype).to(device)[:, 1:-1]

    def tokens(width: int) -> torch.Tensor:
        made = torch.randn(len(lengths), n, groups, width)
        for row, length in enumerate(lengths):
            made[row, length:] = float("nan")
        return made.to(device, new).transpose(1, 2)

    index = None if codes is None else KeyIndex(pages(dim, codes), torch.randn(groups, n_pages, device=device))
    return dict(
        key_pages=pages(dim, dtype),
        value_pages=pages(value_dim, dtype),
        key=tokens(dim),
        value=tokens(value_dim),
        starts=torch.tensor(first, device=device) * size,
        lengths=torch.tensor(lengths, device=device),
        index=index,
    )


def copy(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments over pages of their own; a copy of a view is a view, too."""
    index = given["index"]
    return given | {
        "key_pages": given["key_pages"].clone(),
        "value_pages": given["value_pages"].clone(),
        "index": index and KeyIndex(index.codes.clone(), index.scale.clone()),
    }


def bits(given: dict[str, Any]) -> list[torch.Tensor]:
    """All that was written, as whole numbers, so that equal means equal in every bit."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    written = [given["key_pages"], given["value_pages"], *(given["index"] or ())]
    return [tensor.contiguous().view(kinds[tensor.element_size()]) for tensor in written]


def slot_by_slot(given: dict[str, Any]) -> None:
    """Keys and values of the operation, one slot at a time; rounding is torch's own of one number."""
    size, starts, lengths = given["key_pages"].shape[2], given["starts"].tolist(), given["lengths"].tolist()
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for token in range(length):
            page, slot = divmod(start + token, size)
            for group in range(given["key"].shape[1]):
                given["key_pages"][group, page, slot] = given["key"][row, group, token]
                given["value_pages"][group, page, slot] = given["value"][row, group, token]


def check_codes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Scale and codes of every page in Python numbers, of its keys as stored; other pages are as before."""
    size, touched = after["key_pages"].shape[2], {}
    for start, length in zip(after["starts"].tolist(), after["lengths"].tolist(), strict=True):
        for token in range(length):
            touched.setdefault((start + token) // size, []).append((start + token) % size)
    codes, scale = after["index"]
    for page in range(codes.shape[1]):
        for group in range(codes.shape[0]):
            if page not in touched:
                assert torch.equal(codes[group, page], before["index"].codes[group, page])
                assert scale[group, page] == before["index"].scale[group, page]
                continue
            keys = after["key_pages"][group, page].float().tolist()
            step = scale[group, page].item()
            largest = max(abs(x) for slot in touched[page] for x in keys[slot])
            assert math.isclose(step, largest / 127 if largest else 1.0, rel_tol=1e-6)
            for slot in range(size):
                for x, code in zip(keys[slot], codes[group, page, slot].tolist(), strict=True):
                    if slot in touched[page]:
                        assert abs(x - code * step) <= step / 2 * (1 + 1e-4), f"{x} became {code} * {step}"
                    else:
                        assert code == 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_reference_writes_slot_by_slot(dtype: torch.dtype) -> None:
    given = batch(dtype=dtype)
    slow, before = copy(given), copy(given)
    reference(**given)
    slot_by_slot(slow)
    for ours, theirs in zip(bits(given)[:2], bits(slow)[:2], strict=True):
        assert torch.equal(ours, theirs)
    check_codes(before, given)


@on_devices
@pytest.mark.parametrize("codes", [None, torch.int8], ids=str)
@pytest.mark.parametrize("new", TYPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_kernel_writes_the_same_bits(
    device: str, dtype: torch.dtype, new: torch.dtype, codes: torch.dtype | None
) -> None:
    given = batch(device, dtype, new, codes=codes)
    expected, before = copy(given), copy(given)
    write_pages(**given)
    reference(**expected)
    for ours, theirs in zip(bits(given), bits(expected), strict=True):
        assert torch.equal(ours, theirs)
    if codes is not None:
        check_codes(before, given)


@on_devices
@pytest.mark.parametrize("size", [2, 6, 32])
@pytest.mark.parametrize(("dim", "value_dim"), [(8, 16), (80, 80)])
def test_pages_and_heads_of_any_size(device: str, size: int, dim: int, value_dim: int) -> None:
    shape = dict(lengths=(21, 1, 12), first=(3, 1, 20), n=23, size=size, dim=dim, value_dim=value_dim)
    given = batch(device, torch.bfloat16, **shape)
    expected = copy(given)
    write_pages(**given)
    reference(**expected)
    for ours, theirs in zip(bits(given), bits(expected), strict=True):
        assert torch.equal(ours, theirs)


@on_devices
def test_a_page_of_zeros_has_a_scale_that_divides(device: str) -> None:
    given = batch(device, lengths=(6,), first=(2,))
    given["key"][:, :, :4] = 0.0
    write_pages(**given)
    assert (given["index"].scale[:, 2] == 1.0).all()
    assert (given["index"].codes[:, 2] == 0).all()
    assert (given["index"].codes[:, 3] != 0).any()


@on_devices
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=str)
def test_nothing_to_write(device: str, lengths: tuple[int, ...]) -> None:
    shape = dict(lengths=(*lengths, 1), first=(*range(len(lengths)), 5))
    given = batch(device, **shape)
    before = copy(given)
    none = {name: given[name][: len(lengths)] for name in ("key", "value", "starts", "lengths")}
    for write in (reference, write_pages):
        write(**given | none)
        for ours, theirs in zip(bits(given), bits(before), strict=True):
            assert torch.equal(ours, theirs)


@on_devices
def test_outliers_keep_their_own_size(device: str) -> None:
    given = batch(device, lengths=(8,), first=(0,), n=9, dim=64)
    given["key"][0, 0, 2, 5] = -1e4
    before = copy(given)
    write_pages(**given)
    check_codes(before, given)
    assert given["index"].codes[0, 0, 2, 5] == -127


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_an_index_in_float8(dtype: torch.dtype) -> None:
    given = batch(dtype=dtype, codes=torch.float8_e4m3fn, lengths=(13, 5), first=(0, 8), n=13)
    reference(**given)
    codes, scale = given["index"].codes.float()[:, :3], given["index"].scale[:, :3, None, None]  # full pages of row 0
    error = (codes * scale - given["key_pages"][:, :3].float()).abs()
    # Three bits after the leading one; below 2^-6 steps are of equal size.
    assert (error <= torch.maximum(codes.abs() * scale / 15, scale * 2.0**-10) * 1.001).all()
    assert (codes.abs().amax((2, 3)) == 448).all()


# Triton's interpreter rounds to float8 in a way of its own, and GPUs before 8.9 have no float8.
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_kernel_writes_the_same_float8(dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8")
    given = batch("cuda", dtype, codes=torch.float8_e4m3fn, size=32, lengths=(1000, 63, 100), first=(0, 40, 50), n=1000)
    expected = copy(given)
    write_pages(**given)
    reference(**expected)
    for ours, theirs in zip(bits(given), bits(expected), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_long_rows(dtype: torch.dtype) -> None:
    lengths, first = (16384, 1000, 63, 100, 0, 8193), (0, 600, 640, 650, 660, 700)
    given = batch("cuda", dtype, torch.bfloat16, lengths=lengths, first=first, n=16384, size=32, dim=128, value_dim=128)
    expected = copy(given)
    write_pages(**given)
    reference(**expected)
    for ours, theirs in zip(bits(given), bits(expected), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device() -> None:
    given = batch("cuda")
    write_pages(**given)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        write_pages(**given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
