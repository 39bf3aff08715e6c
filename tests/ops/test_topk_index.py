"""Top-k through an 8-bit index: nearly all of the best keys, with exact scores."""

import torch

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.topk.reference import select_topk as reference
from reattention_kernels.topk.triton_kernel import select_topk as kernel
from tests.close import assert_close
from tests.ops.devices import on_devices, poisoned
from tests.ops.test_topk import NAN, by_sorting, whole


def drifting(groups: int, n: int, dim: int, device: str) -> torch.Tensor:
    """Keys [1, G, N, D] that resemble their neighbours, as those of texts do: an AR(1) series."""
    key = torch.randn(groups, n, dim)
    for i in range(1, n):
        key[:, i] = 0.9 * key[:, i - 1] + (1 - 0.9**2) ** 0.5 * key[:, i]
    return key[None].to(device, torch.bfloat16)


def coded(key: torch.Tensor, dtype: torch.dtype) -> KeyIndex:
    """The index of keys [1, G, N, D] in pages of 32, a view of a larger allocation."""
    pages = key[0].float().unflatten(1, (-1, 32))
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = pages.abs().amax((2, 3)) / largest
    scaled = pages / scale[..., None, None]
    codes = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
    room = torch.zeros(codes.shape[0], codes.shape[1] + 3, 32, key.shape[3], dtype=torch.uint8, device=key.device)
    room[:, 1:-2] = codes.view(torch.uint8)
    return KeyIndex(room.view(dtype)[:, 1:-2], scale)


@on_devices(
    "groups", "repeats", "rows", "dim", "n", "dtype", "least", "masked",
    cpu=[(1, 2, 7, 64, 512, torch.int8, 0.98, False), (2, 1, 3, 128, 256, torch.int8, 0.98, True)],
    cuda=[
        (2, repeats, 256, dim, 8192, torch.int8, 0.98, masked)
        for repeats, dim in ((3, 64), (4, 128), (1, 80), (1, 256))
        for masked in (False, True)
    ]
    + [(2, 4, 256, dim, 8192, torch.float8_e4m3fn, 0.98, masked) for dim in (64, 128, 256) for masked in (False, True)],
)  # fmt: skip
def test_an_index_finds_nearly_all_keys(
    device: str, groups: int, repeats: int, rows: int, dim: int, n: int, dtype: torch.dtype, least: float, masked: bool
) -> None:
    """The scores of what it finds are exact."""
    key = drifting(groups, n, dim, device)
    query = torch.randn(1, groups * repeats, rows, dim, device=device).bfloat16()
    allowed = (torch.rand(n) < 0.7).to(device) if masked else None
    expected, best = reference(query, key, 4, allowed)
    with poisoned(device):
        scores, indices = kernel(query, key, 4, allowed, coded(key, dtype))
    found = (indices[..., None] == best[..., None, :]).any(-2).float().mean().item()
    assert found >= least, f"recall@4 is {found:.4f}, allowed {least}"
    exact = query.double() @ key.double().repeat_interleave(repeats, 1).transpose(2, 3)
    assert_close("scores at the indices", scores, exact.gather(-1, indices), 2e-6)
    assert (scores <= expected + 1e-3).all()
    assert allowed is None or allowed[indices].all()


@on_devices("dtype", cpu=[(torch.int8,)], cuda=[(torch.int8,), (torch.float8_e4m3fn,)])
def test_an_index_over_keys_with_few_that_are_allowed(device: str, dtype: torch.dtype) -> None:
    """Pages that were never written have keys of anything and codes and scales of zero or of anything finite."""
    key = whole(1, 1, 160, 16, low=-9, high=10).to(device, torch.bfloat16)
    index = coded(key, dtype)
    allowed = (torch.arange(160) % 32 < 2) & (torch.arange(160) < 70)
    query = whole(1, 2, 2, 16).to(device, torch.bfloat16)
    expected = by_sorting(query, key, 4, allowed)
    key[:, :, ~allowed.to(device)] = NAN
    index.codes[:, 3:], index.scale[:, 3:] = torch.tensor(127).to(dtype), 1e9
    scores, indices = kernel(query, key, 4, allowed.to(device), index)
    # Six keys in three pages: every block that holds one is looked through.
    assert (scores.flatten().tolist(), indices.flatten().tolist()) == expected


def test_the_reference_gives_the_same_with_an_index() -> None:
    key = drifting(1, 64, 8, "cpu")
    query = torch.randn(1, 1, 2, 8).bfloat16()
    for plain, indexed in zip(
        reference(query, key, 4), reference(query, key, 4, None, coded(key, torch.int8)), strict=True
    ):
        assert torch.equal(plain, indexed)
