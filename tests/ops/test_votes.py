"""The most-voted indices, against a count in a dictionary."""

import pytest
import torch

from reattention_kernels import most_voted


def by_counting(index: torch.Tensor, clip: int) -> tuple[list[int], list[int]]:
    """Kept indices in rising order and their votes."""
    votes: dict[int, int] = {}
    for vote in index.flatten().tolist():
        votes[vote] = votes.get(vote, 0) + 1
    kept = sorted(sorted(votes, key=lambda i: (-votes[i], i))[:clip])
    return kept, [votes[i] for i in kept]


@pytest.mark.parametrize("clip", [1, 2, 7, 1000])
@pytest.mark.parametrize("shape", [(1,), (63,), (4, 5, 3), (8, 100, 4)])
def test_votes_are_counted_over_all_heads_and_queries(shape: tuple[int, ...], clip: int) -> None:
    index = torch.randint(0, 40, shape)
    kept, votes = most_voted(index, clip)
    assert (kept.tolist(), votes.tolist()) == by_counting(index, clip)
    assert kept.dtype == votes.dtype == torch.int64


def test_equal_counts_go_to_the_lowest_index() -> None:
    kept, votes = most_voted(torch.tensor([9, 3, 7, 9, 7, 3, 100]), 2)
    assert kept.tolist() == [3, 7]
    assert votes.tolist() == [2, 2]


def test_a_lower_index_does_not_beat_more_votes() -> None:
    kept, votes = most_voted(torch.tensor([0, 1, 2, 8192, 8192]), 1)
    assert (kept.tolist(), votes.tolist()) == ([8192], [2])


def test_fewer_indices_than_the_clip_are_all_kept() -> None:
    kept, votes = most_voted(torch.tensor([[5, 5], [5, 2]]), 96)
    assert (kept.tolist(), votes.tolist()) == ([2, 5], [1, 3])


def test_no_votes_keep_nothing() -> None:
    kept, votes = most_voted(torch.empty(2, 3, 0, dtype=torch.int64), 4)
    assert (kept.tolist(), votes.tolist()) == ([], [])
