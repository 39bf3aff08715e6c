"""The k best keys of every query: the reference against a sort in plain Python, the kernel against float64."""

from collections.abc import Callable

import pytest
import torch

from reattention_kernels.topk import triton_kernel
from reattention_kernels.topk.maxima_kernel import Shape
from reattention_kernels.topk.reference import BLOCK
from reattention_kernels.topk.reference import select_topk as reference
from reattention_kernels.topk.triton_kernel import select_topk as kernel
from tests.close import assert_close
from tests.ops.devices import both, on_devices, poisoned

Operation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
TYPES = (torch.float32, torch.float16, torch.bfloat16)
DIMS = (64, 80, 96, 128, 256)
NAN, INF = float("nan"), float("inf")
SOME = 64
"""Queries whose scores are held at once."""


def by_sorting(
    query: torch.Tensor, key: torch.Tensor, k: int, allowed: torch.Tensor | None = None
) -> tuple[list[float], list[int]]:
    """All scores and indices, flat: every allowed key's score in Python numbers, by falling score, then rising index."""
    repeats = query.shape[1] // key.shape[1]
    may = [True] * key.shape[2] if allowed is None else allowed.tolist()
    scores: list[float] = []
    indices: list[int] = []
    for batch, heads in enumerate(query.double().tolist()):
        for head, rows in enumerate(heads):
            keys = key[batch, head // repeats].double().tolist()
            for row in rows:
                pairs = []
                for index, vector in enumerate(keys):
                    if may[index]:
                        pairs.append((sum(a * b for a, b in zip(row, vector, strict=True)), index))
                pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k]
                pairs += [(-INF, -1)] * (k - len(pairs))
                scores += [score for score, _ in pairs]
                indices += [index for _, index in pairs]
    return scores, indices


def whole(*shape: int, low: int = -3, high: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: their products are exact in every type, and many scores are equal."""
    return torch.randint(low, high, shape).to(dtype)


def check_exactly(
    operation: Operation,
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    k: int,
    allowed: torch.Tensor | None = None,
) -> None:
    """Equal in every score and index, after new tensors held NaN."""
    with poisoned(device):
        scores, indices = operation(
            query.to(device), key.to(device), k, None if allowed is None else allowed.to(device)
        )
    assert scores.shape == indices.shape == (*query.shape[:3], k)
    assert (scores.dtype, indices.dtype) == (torch.float32, torch.int64)
    expected = by_sorting(query, key, k, allowed)
    assert scores.flatten().tolist() == expected[0]
    assert indices.flatten().tolist() == expected[1]


def check_closely(
    name: str,
    operation: Operation,
    query: torch.Tensor,
    key: torch.Tensor,
    k: int,
    allowed: torch.Tensor | None = None,
    ratio: float = 2e-6,
) -> None:
    """Scores as in float64; indices unique, in range and allowed; nothing missed above the worst that was taken."""
    with poisoned(str(query.device)):
        scores, indices = operation(query, key, k, allowed)
    assert scores.shape == indices.shape == (*query.shape[:3], k)
    n = key.shape[2]
    real = min(k, n if allowed is None else int(allowed.sum()))
    assert scores[..., real:].eq(-INF).all(), name
    assert indices[..., real:].eq(-1).all(), name
    scores, indices = scores[..., :real], indices[..., :real]
    assert ((indices >= 0) & (indices < n)).all(), name
    assert (indices.sort(-1).values.diff() > 0).all(), f"{name}: an index is chosen twice"
    assert (scores.diff() <= 0).all(), f"{name}: scores do not fall"
    best, there, missed, level = by_all_scores(query, key, real, allowed, indices)
    assert_close(f"{name}: scores against the best there are", scores, best, ratio)
    assert_close(f"{name}: scores at the indices", scores, there, ratio)
    if 0 < real < n:
        assert (missed <= there.amin(-1) + 4 * ratio * level).all(), f"{name}: a better key was missed"


def by_all_scores(
    query: torch.Tensor, key: torch.Tensor, k: int, allowed: torch.Tensor | None, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64: the k best scores, those at some indices, the best of all others, and the scores' root mean square.

    A few queries at a time: all scores of a thousand queries to 600,000 keys would take ten gigabytes.
    """
    keys = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3)
    best, there, missed, squares = [], [], [], []
    for some, own in zip(query.split(SOME, 2), indices.split(SOME, 2), strict=True):
        exact = some.double() @ keys
        if allowed is not None:
            exact.masked_fill_(~allowed, -INF)
        best.append(exact.topk(k, -1).values)
        there.append(exact.gather(-1, own))
        missed.append(exact.scatter(-1, own, -INF).amax(-1))
        squares.append(exact[exact.isfinite()].square().mean())
    level = torch.stack(squares).mean().sqrt()
    return torch.cat(best, 2), torch.cat(there, 2), torch.cat(missed, 2), level


@both(reference, kernel)
@pytest.mark.parametrize(
    ("n", "repeats", "rows"), [(1, 1, 3), (63, 3, 1), (63, 16, 1), (100, 4, 1), (100, 8, 1), (1000, 1, 2), (64, 1, 33)]
)
def test_equal_scores_go_to_the_lowest_index(
    device: str, operation: Operation, n: int, repeats: int, rows: int
) -> None:
    groups = 2 if repeats == 4 else 1
    check_exactly(operation, device, whole(1, groups * repeats, rows, 4), whole(1, groups, n, 4), 5)


@both(reference, kernel)
def test_all_keys_alike(device: str, operation: Operation) -> None:
    check_exactly(operation, device, torch.ones(1, 2, 3, 4), torch.ones(1, 1, 400, 4), 7)


@both(reference, kernel)
@pytest.mark.parametrize(
    ("n", "k", "dtype"),
    [
        (1, 1, torch.float16),
        (1, 4, torch.bfloat16),
        (4, 4, torch.float32),
        (63, 64, torch.bfloat16),
        (130, 64, torch.float32),
        (100, 33, torch.float16),
    ],
)
def test_any_number_of_keys_wanted(device: str, operation: Operation, n: int, k: int, dtype: torch.dtype) -> None:
    check_exactly(operation, device, whole(1, 2, 1, 4, dtype=dtype), whole(1, 1, n, 4, dtype=dtype), k)


@both(reference, kernel)
def test_rows_of_a_batch_have_keys_of_their_own(device: str, operation: Operation) -> None:
    allowed = torch.rand(70) < 0.5
    check_exactly(operation, device, whole(3, 4, 1, 4), whole(3, 2, 70, 4), 3, allowed)


@both(reference, kernel)
@pytest.mark.parametrize("only", [0, 31, 62])
def test_the_one_allowed_key_is_chosen_however_bad_it_is(device: str, operation: Operation, only: int) -> None:
    query, key = whole(1, 2, 3, 4, low=1), whole(1, 1, 63, 4, low=1)
    key[:, :, only] = -9
    check_exactly(operation, device, query, key, 4, torch.arange(63) == only)


@both(reference, kernel)
@pytest.mark.parametrize(("n", "share"), [(63, 0.5), (300, 0.02), (1000, 0.5)])
def test_only_allowed_keys_are_chosen(device: str, operation: Operation, n: int, share: float) -> None:
    check_exactly(operation, device, whole(1, 3, 1, 4), whole(1, 1, n, 4), 7, torch.rand(n) < share)


@both(reference, kernel)
@pytest.mark.parametrize("n", [0, 5, 130])
def test_no_allowed_key_gives_none(device: str, operation: Operation, n: int) -> None:
    check_exactly(operation, device, whole(1, 2, 3, 4), whole(1, 1, n, 4), 2, torch.zeros(n, dtype=torch.bool))


@both(reference, kernel)
def test_no_keys_wanted_or_no_queries(device: str, operation: Operation) -> None:
    check_exactly(operation, device, whole(1, 2, 3, 4), whole(1, 1, 9, 4), 0)
    check_exactly(operation, device, whole(1, 2, 0, 4), whole(1, 1, 9, 4), 2)


@both(reference, kernel)
@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the interpreter
def test_what_stands_in_keys_that_are_not_allowed_does_not_matter(
    device: str, operation: Operation, poison: float
) -> None:
    query, key, allowed = whole(1, 2, 2, 4), whole(1, 1, 163, 4), torch.arange(163) % 5 != 0
    allowed[64:130] = False
    clean = operation(query.to(device), key.to(device), 4, allowed.to(device))
    key[:, :, ~allowed] = poison
    dirty = operation(query.to(device), key.to(device), 4, allowed.to(device))
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert clean[0].isfinite().all()


@both(reference, kernel)
def test_bfloat16_keys_are_scored_without_rounding_the_scores(device: str, operation: Operation) -> None:
    """Sums of up to 8 products of up to 40 * 40 need 14 bits, more than bfloat16 has; a query in float32 has more yet."""
    query = whole(1, 2, 2, 8, low=-40, high=41, dtype=torch.bfloat16)
    key = whole(1, 1, 100, 8, low=-40, high=41, dtype=torch.bfloat16)
    check_exactly(operation, device, query, key, 6)
    check_exactly(operation, device, query.float() * 257, key, 6)


@both(reference, kernel)
def test_keys_may_be_views(device: str, operation: Operation) -> None:
    """A slice of a larger allocation, all heads of a token side by side, and a last dimension that is not dense."""
    query, key = whole(2, 2, 1, 4), whole(2, 2, 70, 4)
    expected = by_sorting(query, key, 2)
    sliced = torch.full((2, 4, 90, 6), NAN).to(device)
    sliced[:, 1:3, 9:79, :4] = key
    beside = torch.full((2, 75, 2, 4), NAN).to(device)
    beside[:, :70] = key.transpose(1, 2)
    across = torch.full((2, 2, 4, 80), NAN).to(device)
    across[..., :70] = key.transpose(2, 3)
    for view in (sliced[:, 1:3, 9:79, :4], beside[:, :70].transpose(1, 2), across[..., :70].transpose(2, 3)):
        scores, indices = operation(query.transpose(1, 2).contiguous().transpose(1, 2).to(device), view, 2)
        assert (scores.flatten().tolist(), indices.flatten().tolist()) == expected
    allowed = (torch.arange(140) % 4 == 0).to(device)[::2]
    scores, indices = operation(query.to(device), key.to(device), 2, allowed)
    assert (scores.flatten().tolist(), indices.flatten().tolist()) == by_sorting(query, key, 2, allowed)


@both(reference, kernel)
def test_scores_below_zero_and_of_both_zeros(device: str, operation: Operation) -> None:
    """A key of zeros scores 0 or -0; all the others score less."""
    key = -whole(1, 1, 100, 4, low=1)
    key[:, :, [17, 40]] = 0.0
    check_exactly(operation, device, whole(1, 1, 2, 4, low=1), key, 5)
    check_exactly(operation, device, whole(1, 1, 2, 4, low=1), -key.abs() - 9, 5)


def test_blocks_of_the_reference_are_joined_as_if_there_were_one() -> None:
    """All keys alike but two, one at each side of the block's edge."""
    key = torch.zeros(1, 1, BLOCK + 8, 4)
    key[:, :, BLOCK - 1 : BLOCK + 1] = 1.0
    assert reference(torch.ones(1, 1, 1, 4), key, 5)[1].flatten().tolist() == [BLOCK - 1, BLOCK, 0, 1, 2]
    allowed = torch.arange(BLOCK + 8) == BLOCK
    assert reference(torch.ones(1, 1, 1, 4), key, 2, allowed)[1].flatten().tolist() == [BLOCK, -1]


@on_devices(
    "batch", "groups", "repeats", "rows", "dim", "n", "k", "dtype",
    cpu=[
        (1, 1, 3, 1, 80, 100, 4, torch.bfloat16),
        (1, 2, 1, 1, 128, 260, 5, torch.float16),
        (2, 1, 2, 1, 3, 63, 8, torch.float32),
        (1, 1, 1, 3, 96, 129, 2, torch.float32),
        (1, 1, 2, 1, 256, 65, 3, torch.bfloat16),
    ],
    cuda=[
        (*shape, dtype)
        for dtype in TYPES
        for shape in [(1, 2, repeats, 63, dim, 1000, 4) for dim in DIMS for repeats in (1, 3, 4, 8, 16)]
        + [(2, 3, 3, 100, dim, 131_073, 4) for dim in DIMS]
        + [(1, 2, 4, 100, 128, 131_073, k) for k in (1, 2, 5, 31, 33, 64)]
        + [(1, 1, 2, 1000, 64, n, 7) for n in (1, 63, 100, 1000, 600_000)]
    ],
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_in_every_type_and_shape(
    device: str,
    batch: int,
    groups: int,
    repeats: int,
    rows: int,
    dim: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    masked: bool,
) -> None:
    query = torch.randn(batch, groups * repeats, rows, dim, device=device).to(dtype)
    key = torch.randn(batch, groups, n, dim, device=device).to(dtype)
    allowed = torch.rand(n) < 0.7
    allowed[0] = True
    check_closely("kernel", kernel, query, key, k, allowed.to(device) if masked else None)
    if dtype != torch.float32 and masked:
        check_closely("a query in float32", kernel, query.float() * 1.001, key, k)


@pytest.mark.parametrize("n", [63, 1000, BLOCK + 9])
def test_the_reference_is_as_good_as_float64(n: int) -> None:
    check_closely("reference", reference, torch.randn(2, 4, 3, 8), torch.randn(2, 2, n, 8), 6, torch.rand(n) < 0.7)


@on_devices("n", cpu=[(300,)], cuda=[(300,), (131_073,)])
def test_blocks_as_large_as_tiles(device: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As very many keys are cut up."""
    monkeypatch.setattr(triton_kernel, "shape_for", lambda *_: Shape(32, 128, 128, 4, 2))
    check_exactly(kernel, device, whole(1, 2, 1, 4), whole(1, 1, min(n, 1000), 4), 5, torch.rand(min(n, 1000)) < 0.5)
    check_closely("kernel", kernel, torch.randn(1, 2, 2, 16, device=device), torch.randn(1, 1, n, 16, device=device), 5)


@pytest.mark.parametrize(
    ("device", "rows"),
    [pytest.param("cpu", 129, marks=pytest.mark.slow), pytest.param("cuda", 1000, marks=pytest.mark.gpu)],
)
def test_queries_are_taken_in_turns(device: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "WORKSPACE", 0)
    check_exactly(kernel, device, whole(1, 1, rows, 4), whole(1, 1, 70, 4), 1)


@both(reference, kernel)
def test_two_runs_agree_in_every_bit(device: str, operation: Operation) -> None:
    query, key = torch.randn(1, 2, 1, 16, device=device), torch.randn(1, 2, 200, 16, device=device)
    first, second = operation(query, key, 6), operation(query.clone(), key.clone(), 6)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device() -> None:
    query, key = (
        torch.randn(1, 4, 9, 64, device="cuda").bfloat16(),
        torch.randn(1, 2, 999, 64, device="cuda").bfloat16(),
    )
    kernel(query, key, 4)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel(query, key, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
