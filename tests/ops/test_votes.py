"""The most-voted indices, against a count in a dictionary."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from reattention_kernels.votes.reference import most_voted as reference
from reattention_kernels.votes.triton_kernel import most_voted as kernel
from tests.ops.devices import both, poisoned

Operation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def by_counting(votes: list[int], weights: list[float], clip: int) -> tuple[list[int], list[Fraction]]:
    """Kept indices in rising order and the sum of their weights, of one set."""
    counted: dict[int, Fraction] = {}
    for vote, weight in zip(votes, weights, strict=True):
        if vote >= 0 and weight > 0:
            counted[vote] = counted.get(vote, Fraction(0)) + Fraction(weight)
    kept = sorted(sorted(counted, key=lambda i: (-counted[i], i))[:clip])
    return kept, [counted[i] for i in kept]


def check(
    operation: Operation, device: str, index: torch.Tensor, bins: int, clip: int, weight: torch.Tensor | None
) -> None:
    with poisoned(device):
        kept, votes = operation(index.to(device), bins, clip, None if weight is None else weight.to(device))
    assert kept.shape == votes.shape == (len(index), clip)
    assert (kept.dtype, votes.dtype) == (torch.int64, torch.int64 if weight is None else torch.float32)
    weights = torch.ones(index.shape) if weight is None else weight
    for row in range(len(index)):
        expected = by_counting(index[row].tolist(), weights[row].tolist(), clip)
        n = len(expected[0])
        assert kept[row].tolist() == expected[0] + [-1] * (clip - n)
        assert votes[row].tolist() == [float(v) for v in expected[1]] + [0] * (clip - n)


@both(reference, kernel)
@pytest.mark.parametrize("clip", [1, 2, 7, 100])
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (2, 100), (3, 1025)])
def test_votes_of_each_set_are_counted(device: str, operation: Operation, shape: tuple[int, int], clip: int) -> None:
    """1,025 votes are one more than a program of the kernel counts; some are no votes."""
    check(operation, device, torch.randint(-1, 40, shape), 41, clip, None)


@both(reference, kernel)
@pytest.mark.parametrize("shape", [(1, 63), (3, 1025)])
def test_votes_weigh(device: str, operation: Operation, shape: tuple[int, int]) -> None:
    """By eighths, which are exact; some weigh nothing."""
    check(operation, device, torch.randint(-1, 40, shape), 40, 7, torch.randint(0, 20, shape) / 8)


@both(reference, kernel)
def test_the_order_of_votes_does_not_matter(device: str, operation: Operation) -> None:
    """Sums of random weights in float32 would depend on it."""
    index, weight = torch.randint(0, 5, (1, 1500), device=device), torch.rand(1, 1500, device=device)
    kept, votes = operation(index, 5, 3, weight)
    for _ in range(5):
        order = torch.randperm(1500, device=device)
        again = operation(index[:, order], 5, 3, weight[:, order])
        assert torch.equal(again[0], kept)
        assert torch.equal(again[1], votes)
    exact = torch.zeros(1, 5, dtype=torch.float64, device=device).scatter_add_(1, index, weight.double())
    torch.testing.assert_close(votes.double(), exact.gather(1, kept), rtol=0, atol=1e-3)


@both(reference, kernel)
def test_equal_votes_go_to_the_lowest_index(device: str, operation: Operation) -> None:
    index = torch.tensor([[9, 3, 7, 9, 7, 3, 100], [100, 99, 98, 97, 96, 95, 94]])
    check(operation, device, index, 101, 2, None)
    kept, votes = operation(index.to(device), 101, 2)
    assert kept.tolist() == [[3, 7], [94, 95]]
    assert votes.tolist() == [[2, 2], [1, 1]]


@both(reference, kernel)
def test_a_lower_index_does_not_beat_more_votes(device: str, operation: Operation) -> None:
    check(operation, device, torch.tensor([[0, 1, 2, 8192, 8192]]), 8193, 1, None)
    check(operation, device, torch.tensor([[0, 0, 5]]), 6, 1, torch.tensor([[0.25, 0.25, 0.625]]))


@both(reference, kernel)
def test_more_wanted_than_there_are_bins(device: str, operation: Operation) -> None:
    check(operation, device, torch.tensor([[1, 1, 0], [2, -1, 2]]), 3, 96, None)


@both(reference, kernel)
def test_no_votes_keep_nothing(device: str, operation: Operation) -> None:
    check(operation, device, torch.empty(2, 0, dtype=torch.int64), 9, 4, None)
    check(operation, device, torch.full((2, 3), -1), 9, 4, None)
    check(operation, device, torch.tensor([[4, 4]]), 9, 4, torch.zeros(1, 2))


@both(reference, kernel)
def test_the_last_bin_and_views(device: str, operation: Operation) -> None:
    """Votes that are a slice of a larger tensor, in the largest bins there may be."""
    bins = 131_073
    whole = torch.randint(bins - 3, bins, (4, 50)).to(device)
    kept, votes = operation(whole[1:3, 5:40], bins, 3)
    for row in range(2):
        expected = by_counting(whole[1 + row, 5:40].tolist(), [1.0] * 35, 3)
        assert (kept[row].tolist(), votes[row].tolist()) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("weighed", [False, True])
def test_large_votes_on_a_gpu(weighed: bool) -> None:
    """Many programs add to the same bins."""
    index = torch.randint(-1, 131_073, (8, 262_145), device="cuda")
    index[:, ::3] = torch.randint(0, 50, index[:, ::3].shape, device="cuda")
    weight = torch.rand(index.shape, device="cuda") if weighed else None
    first, expected = kernel(index, 131_073, 96, weight), reference(index, 131_073, 96, weight)
    second = kernel(index, 131_073, 96, weight)
    for ours, theirs, again in zip(first, expected, second, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, again)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_vote_does_not_wait_for_the_device() -> None:
    index, weight = torch.randint(0, 50, (2, 100), device="cuda"), torch.rand(2, 100, device="cuda")
    kernel(index, 50, 9, weight)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel(index, 50, 9, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
