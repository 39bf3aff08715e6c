"""Rotary embeddings: the reference against complex numbers in Python, the kernel against the reference, bit by bit."""

import cmath
from typing import Any

import pytest
import torch

from reattention_kernels.launch import INTERPRETED
from reattention_kernels.rotation.reference import rotate as reference
from reattention_kernels.rotation.triton_kernel import rotate as kernel
from tests.close import assert_close
from tests.ops.devices import on_devices, poisoned

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def tokens(
    device: str = "cpu", dtype: torch.dtype = torch.float32, shape: tuple[int, int, int, int] = (2, 3, 5, 8),
    width: int = 8, start: int = 3, angles: torch.dtype | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of the operation: heads side by side in a token, as a projection leaves them; more positions than needed."""
    rows, heads, n, dim = shape
    angle = torch.rand(start + n + 2, width // 2) * 6
    return dict(
        x=torch.randn(rows, n, heads, dim).to(device, dtype).transpose(1, 2),
        cos=angle.cos().to(device, angles or dtype),
        sin=angle.sin().to(device, angles or dtype),
        start=start,
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [8, 4, 2, 0])
def test_pairs_of_dimensions_are_complex_numbers_that_turn(width: int, interleaved: bool) -> None:
    given = tokens(width=width)
    ours = reference(**given, interleaved=interleaved)
    first = range(0, width, 2) if interleaved else range(width // 2)
    apart = 1 if interleaved else width // 2
    expected = given["x"].clone()
    for row, head, token in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        for pair, dim in enumerate(first):
            angle = cmath.phase(complex(given["cos"][3 + token, pair], given["sin"][3 + token, pair]))
            x = given["x"][row, head, token]
            turned = complex(x[dim], x[dim + apart]) * cmath.exp(1j * angle)
            expected[row, head, token, dim], expected[row, head, token, dim + apart] = turned.real, turned.imag
    assert_close("turned", ours, expected, 1e-6)
    assert torch.equal(ours[..., width:], given["x"][..., width:])


@on_devices(
    "shape", "width", "start",
    cpu=[((2, 3, 5, 8), 8, 3), ((1, 2, 33, 64), 64, 0), ((1, 1, 40, 80), 20, 7), ((3, 1, 1, 6), 6, 100), ((1, 2, 3, 8), 0, 1)],
    cuda=[
        *(((2, 3, n, dim), dim, 7) for n in (1, 31, 1000) for dim in (64, 80, 96, 128, 256)),
        *(((2, 3, 63, dim), width, 7) for dim, width in ((80, 32), (128, 64), (256, 2))),
        ((16, 9, 1043, 64), 64, 32),
        ((1, 32, 4097, 128), 128, 0),
        ((1, 2, 3, 8), 0, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_tokens_of_any_shape(
    device: str, shape: tuple[int, int, int, int], width: int, start: int, dtype: torch.dtype, interleaved: bool
) -> None:
    """Every bit is torch's, so that a model reads on a GPU what it would read by its own code."""
    given = tokens(device, dtype, shape, width, start)
    with poisoned(device):
        ours = kernel(**given, interleaved=interleaved)
    expected = reference(**given, interleaved=interleaved)
    assert ours.dtype == dtype
    if INTERPRETED and dtype == torch.bfloat16:  # the interpreter cuts it off instead of rounding it
        assert_close("turned", ours, expected, 2**-7)
    else:
        assert torch.equal(ours, expected)


@on_devices(cpu=[()], cuda=[()])
@pytest.mark.parametrize(
    ("dtype", "angles"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str
)
def test_angles_of_another_type(device: str, dtype: torch.dtype, angles: torch.dtype) -> None:
    """Some models keep angles in float32; what both promote to is what is rounded to."""
    given = tokens(device, dtype, angles=angles)
    ours = kernel(**given)
    assert ours.dtype == dtype
    if INTERPRETED and dtype == torch.bfloat16:
        assert_close("turned", ours, reference(**given), 2**-7)
    else:
        assert torch.equal(ours, reference(**given))


@on_devices(cpu=[()], cuda=[()])
def test_arguments_may_be_views(device: str) -> None:
    """The sink's page stands in every row of a batch without being there more than once; every other dimension is a view."""
    given = tokens(device, shape=(1, 3, 5, 8))
    wide = given["x"].repeat_interleave(2, -1)[..., ::2]
    for x in (given["x"].expand(4, -1, -1, -1), wide, given["x"][:, 1:, 2:]):
        assert torch.equal(kernel(**given | {"x": x}), reference(**given | {"x": x}))
    apart = {name: given[name].repeat_interleave(2, 1)[:, ::2] for name in ("cos", "sin")}
    assert torch.equal(kernel(**given | apart), reference(**given))


@on_devices(cpu=[()], cuda=[()])
def test_nothing_stays_nothing(device: str) -> None:
    assert kernel(**tokens(device, shape=(2, 3, 0, 8))).shape == (2, 3, 0, 8)


@on_devices(cpu=[()], cuda=[()])
def test_float64_is_left_to_torch(device: str) -> None:
    with pytest.raises(NotImplementedError, match="float64"):
        kernel(**tokens(device, torch.float64))
