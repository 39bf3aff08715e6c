"""Softmax mass of pages: the reference against one softmax after another in Python, the kernel against float64."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from reattention_kernels.evidence import triton_kernel
from reattention_kernels.evidence.reference import BLOCK
from reattention_kernels.evidence.reference import page_evidence as reference
from reattention_kernels.evidence.triton_kernel import page_evidence as kernel
from reattention_kernels.key_index import KeyIndex
from tests.close import assert_close
from tests.ops.devices import both, on_devices, poisoned

Operation = Callable[..., torch.Tensor]
NAN = float("nan")
T = 32

# As on a GPU, what is too large becomes infinite; numpy, which the interpreter computes in, warns.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{what}") for what in ("overflow", "invalid value", "divide by zero")]


def by_softmax(query: torch.Tensor, key: torch.Tensor, filled: list[int], scaling: float) -> torch.Tensor:
    """[H, P]: each token's softmax over all filled slots, summed within each page, averaged over the tokens."""
    repeats = query.shape[0] // key.shape[0]
    keys = key.double().tolist()
    mass = torch.zeros(query.shape[0], len(filled), dtype=torch.float64)
    for head, rows in enumerate(query.double().tolist()):
        for row in rows:
            scores, pages = [], []
            for page, n in enumerate(filled):
                for vector in keys[head // repeats][page][:n]:
                    scores.append(scaling * sum(a * b for a, b in zip(row, vector, strict=True)))
                    pages.append(page)
            exps = [math.exp(score - max(scores)) for score in scores]
            total = math.fsum(exps)
            for one, page in zip(exps, pages, strict=True):
                mass[head, page] += one / total / len(rows)
    return mass


def exact(query: torch.Tensor, key: torch.Tensor, filled: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same in float64 tensors, for more keys; a row without a key has none."""
    repeats, size = query.shape[0] // key.shape[0], key.shape[2]
    scores = query.double() @ key.double().flatten(1, 2).repeat_interleave(repeats, 0).transpose(1, 2) * scaling
    hole = (torch.arange(size, device=key.device) >= filled[:, None]).flatten()
    weights = scores.masked_fill(hole, -math.inf).softmax(-1).nan_to_num(0.0)
    return weights.unflatten(-1, (-1, size)).sum(-1).mean(1)


def question(
    device: str,
    filled: list[int],
    *,
    groups: int = 1,
    repeats: int = 1,
    rows: int = 2,
    dim: int = 8,
    size: int = T,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Arguments of the operation: keys are a view of a larger allocation, and unfilled slots hold NaN."""
    whole = torch.full((groups, len(filled) + 3, size, dim), NAN)
    there = torch.arange(size) < torch.tensor(filled)[:, None]
    whole[:, 1:-2][:, there] = torch.randn(groups, int(there.sum()), dim)
    return dict(
        query=torch.randn(groups * repeats, rows, dim).to(device, dtype),
        key=whole.to(device, dtype)[:, 1:-2],
        filled=torch.tensor(filled, device=device),
        scaling=2 * dim**-0.5,
    )  # fmt: skip


def rounded(operation: Operation, given: dict[str, Any]) -> float:
    """How far a result may be off since the kernel rounds the masses of 16-bit queries to bfloat16, but for the interpreter."""
    query = given["query"]
    return 2**-8 if operation is kernel and query.is_cuda and query.dtype != torch.float32 else 0.0


def check(name: str, operation: Operation, given: dict[str, Any], ratio: float = 1e-5) -> torch.Tensor:
    """The result, after its memory held NaN, against float64; each row sums to 1, and empty pages have exactly 0."""
    ratio = max(ratio, rounded(operation, given))
    with poisoned(str(given["query"].device)):
        ours = operation(**given)
    clean = given | {"key": given["key"].nan_to_num(0.0)}
    assert ours.dtype == torch.float32
    assert_close(f"{name}: mass", ours, exact(**clean), ratio)
    some = bool((given["filled"] > 0).any())
    assert_close(f"{name}: sum", ours.double().sum(-1), torch.full((len(ours),), float(some)).to(ours), ratio)
    assert (ours[:, given["filled"] == 0] == 0).all()
    return ours


@both(reference, kernel)
@pytest.mark.parametrize(
    "filled", [[32], [1], [0, 1, 31, 32], [0, 0, 0, 0, 0, 0, 7, 0, 3], [32] * 8, [32, 0, 0, 31, 1, 5, 32]]
)
def test_mass_of_pages_of_any_filling(device: str, operation: Operation, filled: list[int]) -> None:
    """Whole tiles, parts of tiles, and tiles without a key before the first that has one."""
    given = question(device, filled, groups=2, repeats=2, rows=3, dim=6)
    ours = check("mass", operation, given)
    slow = by_softmax(given["query"], given["key"], filled, given["scaling"])
    assert_close("token by token", ours.cpu(), slow, 1e-5)


@both(reference, kernel)
@pytest.mark.parametrize("filled", [[0], [0, 0, 0, 0, 0]])
def test_no_key_gets_no_mass(device: str, operation: Operation, filled: list[int]) -> None:
    given = question(device, filled, groups=2, repeats=2)
    with poisoned(device):
        assert torch.equal(operation(**given), torch.zeros(4, len(filled), device=device))


@both(reference, kernel)
def test_many_pages(device: str, operation: Operation) -> None:
    check("mass", operation, question(device, torch.randint(0, 5, (63,)).tolist(), dim=4))


def test_one_page_more_than_the_reference_scores_at_a_time() -> None:
    check("mass", reference, question("cpu", torch.randint(0, 5, (BLOCK + 1,)).tolist(), dim=4))


@both(reference, kernel)
@pytest.mark.parametrize("poison", [NAN, 1e30])
def test_unfilled_slots_may_hold_anything(device: str, operation: Operation, poison: float) -> None:
    given = question(device, [32, 0, 1, 31, 4], repeats=2)
    clean = operation(**given | {"key": given["key"].nan_to_num(0.0)})
    assert torch.equal(operation(**given | {"key": given["key"].nan_to_num(poison)}), clean)


@on_devices(
    "groups", "repeats", "rows", "dim", "size", "pages", "dtype",
    cpu=[
        (1, 3, 5, 80, 32, 5, torch.bfloat16),
        (2, 1, 1, 128, 32, 9, torch.float16),
        (1, 8, 3, 64, 16, 7, torch.float32),
        (1, 16, 9, 3, 64, 4, torch.bfloat16),
        (1, 4, 40, 96, 128, 3, torch.float32),
        (1, 1, 1, 256, 1, 63, torch.bfloat16),
    ],
    cuda=[
        (2, repeats, rows, dim, 32, 1000, dtype)
        for dim in (64, 80, 96, 128, 256)
        for repeats, rows in ((1, 1), (3, 40), (4, 63), (8, 100), (16, 9), (4, 256))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    + [(2, 4, 40, dim, 32, 4097, torch.bfloat16) for dim in (64, 128)]
    + [(2, 3, 7, 64, size, 131, torch.float16) for size in (1, 8, 16, 64, 128)],
)  # fmt: skip
def test_the_kernel_in_every_type_and_shape(
    device: str, groups: int, repeats: int, rows: int, dim: int, size: int, pages: int, dtype: torch.dtype
) -> None:
    filled = torch.randint(0, size + 1, (pages,)).tolist()
    given = question(
        device, filled, groups=groups, repeats=repeats, rows=rows, dim=dim, size=size, dtype=dtype
    )  # fmt: skip
    check("kernel", kernel, given)
    check("all pages full", kernel, question(device, [size] * pages, repeats=2, dim=dim, size=size, dtype=dtype))


@both(reference, kernel)
def test_a_question_in_float32_over_keys_in_bfloat16(device: str, operation: Operation) -> None:
    given = question(device, [32, 9, 0, 32, 1], dim=16)
    check("mixed", operation, given | {"key": given["key"].bfloat16()})


@both(reference, kernel)
@pytest.mark.parametrize("heads", [[5], [4, 1], [3, 2, 1, 0], [2, 2], []])
def test_heads_in_any_order_each_with_its_weight(device: str, operation: Operation, heads: list[int]) -> None:
    """Some key heads with one wanted head and others with several; some with none."""
    given = question(device, [32, 3, 0, 17, 32], groups=3, repeats=2, rows=3)
    every = check("every head", operation, given)
    weights = torch.rand(len(heads), device=device) * 3
    with poisoned(device):
        some, weighed = operation(**given, heads=heads), operation(**given, heads=heads, weights=weights)
    assert some.shape == weighed.shape == (len(heads), 5)
    if heads:
        assert_close("some heads", some, every[heads], 1e-6)
        assert_close("weighed", weighed, every[heads] * weights[:, None], 1e-6)
        assert_close("their sums", weighed.sum(-1), weights, 1e-5)


@both(reference, kernel)
def test_weights_of_all_heads(device: str, operation: Operation) -> None:
    given = question(device, [32, 3], groups=2, repeats=2)
    weights = torch.tensor([0.0, 1.0, 0.5, 7.0], device=device)
    expected = operation(**given) * weights[:, None]
    assert_close("weighed", operation(**given, weights=weights), expected, 1e-6)


def indexed(key: torch.Tensor, filled: torch.Tensor, dtype: torch.dtype) -> tuple[KeyIndex, torch.Tensor]:
    """The index of keys, NaN in the scales of empty pages, and the keys that it stands for."""
    hole = torch.arange(key.shape[2], device=key.device) >= filled[:, None]
    there = key.float().masked_fill(hole[..., None], 0.0)
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = (there.abs().amax((2, 3)) / largest).masked_fill(filled == 0, NAN)
    scaled = there / scale.nan_to_num(1.0)[..., None, None]
    codes = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
    return KeyIndex(codes, scale), codes.double() * scale.nan_to_num(0.0).double()[..., None, None]


@both(reference, kernel)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dim", [16, 80])
def test_keys_of_an_index(device: str, operation: Operation, dtype: torch.dtype, dim: int) -> None:
    if (device, operation, dtype) == ("cpu", kernel, torch.float8_e4m3fn):
        pytest.skip("Triton's interpreter has no float8")
    given = question(device, [32, 0, 7, 32, 31, 1], groups=2, repeats=3, rows=3, dim=dim, dtype=torch.bfloat16)
    index, stands_for = indexed(given["key"], given["filled"], dtype)
    with poisoned(device):
        ours = operation(**given | {"key": index})
    assert_close("index", ours, exact(**given | {"key": stands_for}), max(1e-4, rounded(operation, given)))
    assert_close("sum", ours.sum(-1), torch.ones(6, device=device), max(1e-5, rounded(operation, given)))
    assert (ours[:, 1] == 0).all()
    some = operation(**given | {"key": index}, heads=[4, 1], weights=torch.tensor([2.0, 3.0], device=device))
    assert_close("some heads", some, ours[[4, 1]] * torch.tensor([[2.0], [3.0]], device=device), 1e-6)


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles in one share, so that the first of them says in what unit the others are counted."""
    monkeypatch.setattr(triton_kernel, "PROGRAMS", 1)


@both(reference, kernel)
def test_arguments_may_be_views(device: str, operation: Operation) -> None:
    """Heads side by side in a token, every other count, every other weight."""
    given = question(device, [32, 3, 0, 17, 32], groups=3, repeats=2, rows=3)
    expected = operation(**given, weights=torch.arange(6.0, device=device))
    across = {
        "query": given["query"].transpose(0, 1).contiguous().transpose(0, 1),
        "key": given["key"].permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3),
        "filled": given["filled"].repeat_interleave(2)[::2],
        "weights": torch.arange(6.0, device=device).repeat_interleave(2)[::2],
    }
    assert torch.equal(operation(**given | across), expected)
    index, _ = indexed(given["key"], given["filled"], torch.int8)
    expected = operation(**given | {"key": index})
    apart = KeyIndex(index.codes.transpose(1, 2).contiguous().transpose(1, 2), index.scale.t().contiguous().t())
    assert torch.equal(operation(**given | {"key": apart}), expected)


@both(reference, kernel)
@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("jump", [20.0, 85.0, 89.0, 200.0, 1000.0])
def test_a_score_far_above_those_of_the_first_tile(device: str, operation: Operation, jump: float) -> None:
    """In nats above it; exp(89) is beyond float32. Only one row has such a score."""
    given = question(device, [32] * 14, groups=1, rows=3, dim=8) | {"scaling": 1.0}
    given["query"][:, :, 0] = torch.tensor([0.0, 1.0, 0.0], device=device)
    given["key"][..., 0] = 0.0
    given["key"][0, 9, 5, 0] = jump
    given["key"][0, 11, 30, 0] = jump - 1.5
    ours = check("kernel", operation, given, 1e-4)
    assert ours[0, [9, 11]].sum() > 0.33


@both(reference, kernel)
@pytest.mark.usefixtures("one_program")
def test_a_score_far_below_those_of_the_first_tile(device: str, operation: Operation) -> None:
    given = question(device, [32] * 9, dim=4) | {"scaling": 1.0}
    given["key"][0, 4:] -= 400 * given["query"][0, 0]
    check("kernel", operation, given, 1e-4)


@both(reference, kernel)
@pytest.mark.usefixtures("one_program")
def test_tiles_without_a_key_before_the_first(device: str, operation: Operation) -> None:
    """What says the unit is then a later tile; the empty slots there hold NaN."""
    check("kernel", operation, question(device, [0] * 9 + [3, 32, 0, 0, 32], repeats=2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("jump", [0.0, 85.0, 200.0, 1000.0])
@pytest.mark.parametrize("programs", [1, 1056])
@pytest.mark.parametrize("dim", [64, 128])
def test_totals_too_large_for_the_hopper_kernel_are_counted_again(
    dim: int, programs: int, jump: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles without a key, then a partly filled one, then a score far above it for one row of all; three row blocks."""
    if torch.cuda.get_device_capability()[0] == 9:
        hopper = import_module("reattention_kernels.evidence.hopper_kernel")
        monkeypatch.setitem(hopper.CUTS, dim, hopper.CUTS[dim]._replace(programs=programs))
    given = question("cuda", [0] * 9 + [3, 0, 32, 31] + [32] * 30, groups=2, repeats=4, rows=40, dim=dim, dtype=dtype)
    given["query"] *= 0.1
    given["query"][:, :, 0], given["key"][..., 0] = 0.0, 0.0
    given["query"][1, 7, 0], given["key"][:, 20, 5, 0] = 1.0, jump / given["scaling"]
    check("kernel", kernel, given, 1e-3)


@both(reference, kernel)
@pytest.mark.parametrize("shift", [-3000.0, -200.0, 200.0, 3000.0])
def test_all_scores_huge_or_very_negative(device: str, operation: Operation, shift: float) -> None:
    """A softmax does not change when all scores move together; float32 holds 3,000 to 2e-4."""
    given = question(device, [32, 0, 9, 32, 32, 5, 32], dim=8) | {"scaling": 1.0}
    given["query"][:, :, 0], given["key"][..., 0] = 1.0, shift
    check("kernel", operation, given, 1e-3)


@on_devices("pages", cpu=[(32,)], cuda=[(4096,)])
@pytest.mark.parametrize("step", [30.0, 83.0, 87.9, 88.6])
def test_shares_that_each_hold_almost_too_much(
    device: str, step: float, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every share's first tile scores 0; one key in its second makes its total end just below the end of float32."""
    monkeypatch.setattr(triton_kernel, "PROGRAMS", -(-pages // 8))
    given = question(device, [32] * pages, rows=2, dim=8) | {"scaling": 1.0}
    given["query"][..., 0], given["key"][..., 0] = 1.0, 0.0
    given["query"][..., 1:] = 0.0
    given["key"][:, 2::8, 0, 0] = step
    check("kernel", kernel, given, 1e-4)


@on_devices("pages", cpu=[(26,), (27,), (61,)], cuda=[(1000,), (4099,)])
@pytest.mark.parametrize("programs", [5, 7])
def test_averages_over_the_end_of_a_share(
    device: str, pages: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares are as long as there are programs, averages are made of a power of two of pages: few shares end with one."""
    monkeypatch.setattr(triton_kernel, "PROGRAMS", programs)
    given = question(device, [32] * (pages - 2) + [5, 0], groups=2, repeats=2, rows=3)
    # Scores rise from page to page, so that each share has a unit of its own.
    given["query"][..., 0] = 1.0
    given["key"][..., 0] = torch.arange(float(pages), device=device)[:, None] * (40 / pages)
    check("kernel", kernel, given)


@pytest.mark.slow
@on_devices(cpu=[()], cuda=[()])
@pytest.mark.usefixtures("one_program")
def test_an_infinite_key_does_not_keep_the_kernel_busy_for_ever(device: str) -> None:
    """Its head has no evidence; the others do not notice."""
    given = question(device, [32] * 4, groups=2, rows=1)
    given["key"][0, 3, 3] = math.inf
    given["query"][:] = given["query"].abs()
    ours = kernel(**given)
    assert not (ours[0] > 0).any()
    assert_close("the other head", ours[1].sum(), torch.ones((), device=device), 1e-5)


@on_devices(cpu=[()], cuda=[()])
def test_two_runs_agree_in_every_bit(device: str) -> None:
    given = question(device, [32, 3, 0, 32, 32, 32, 17], repeats=3, rows=5, dtype=torch.bfloat16)
    assert torch.equal(kernel(**given), kernel(**given | {"key": given["key"].clone()}))


@on_devices(cpu=[()], cuda=[()])
def test_pages_that_the_kernel_cannot_read_are_named(device: str) -> None:
    with pytest.raises(NotImplementedError, match="pages of 24 tokens"):
        kernel(**question(device, [24, 3], size=24))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device() -> None:
    given = question("cuda", [32] * 40, groups=2, repeats=4, rows=40, dim=64, dtype=torch.bfloat16)
    kernel(**given, heads=[3, 1])  # compiled, and the plan of the heads is on the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel(**given, heads=[3, 1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
