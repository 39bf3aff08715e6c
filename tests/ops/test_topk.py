"""The k best keys of every query, against a sort of all scores in plain Python numbers."""

import pytest
import torch

from reattention_kernels import select_topk
from tests.close import assert_close


def by_sorting(
    query: torch.Tensor, key: torch.Tensor, k: int, allowed: list[bool] | None = None
) -> tuple[list[list[list[float]]], list[list[list[int]]]]:
    """Scores and indices [H][Q][k]: every allowed key's float64 score, sorted by falling score, then rising index."""
    repeats = query.shape[0] // key.shape[0]
    keys = key.double().tolist()
    scores, indices = [], []
    for head, rows in enumerate(query.double().tolist()):
        ranked = []
        for row in rows:
            pairs = []
            for index, vector in enumerate(keys[head // repeats]):
                if allowed is None or allowed[index]:
                    pairs.append((sum(a * b for a, b in zip(row, vector, strict=True)), index))
            pairs.sort(key=lambda pair: (-pair[0], pair[1]))
            ranked.append(pairs[:k])
        scores.append([[score for score, _ in row] for row in ranked])
        indices.append([[index for _, index in row] for row in ranked])
    return scores, indices


def whole(*shape: int, low: int = -3, high: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers: their products are exact in every type, and many scores are equal."""
    return torch.randint(low, high, shape).to(dtype)


@pytest.mark.parametrize("n", [1, 63, 100, 1000, 8193])
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_equal_scores_go_to_the_lowest_index(n: int, repeats: int) -> None:
    groups, rows = (1, 1) if n > 1000 else (2, 3)
    query, key = whole(groups * repeats, rows, 4), whole(groups, n, 4)
    scores, indices = select_topk(query, key, 5)
    expected = by_sorting(query, key, 5)
    assert scores.tolist() == expected[0]
    assert indices.tolist() == expected[1]


@pytest.mark.parametrize("n", [63, 100, 1000, 8193])
def test_scores_are_those_of_double_precision(n: int) -> None:
    query, key = torch.randn(2, 2, 8), torch.randn(2, n, 8)
    scores, indices = select_topk(query, key, 4)
    assert_close("scores", scores, torch.tensor(by_sorting(query, key, 4)[0], dtype=torch.float64), 1e-6)
    assert scores.dtype == torch.float32
    for head in range(2):
        for row in range(2):
            chosen = indices[head, row].tolist()
            assert len(set(chosen)) == 4
            own = torch.stack([query[head, row].double() @ key[head, i].double() for i in chosen])
            assert_close("scores at the indices", scores[head, row], own, 1e-6)


@pytest.mark.parametrize(("n", "k"), [(1, 4), (4, 4), (63, 63), (63, 100)])
def test_more_keys_wanted_than_there_are_gives_all_of_them(n: int, k: int) -> None:
    query, key = whole(4, 2, 4), whole(2, n, 4)
    scores, indices = select_topk(query, key, k)
    assert indices.shape == (4, 2, n)
    assert (scores.tolist(), indices.tolist()) == by_sorting(query, key, k)


@pytest.mark.parametrize("n", [63, 8193])
@pytest.mark.parametrize("only", [0, 31, 62])
def test_the_one_allowed_key_is_chosen_however_bad_it_is(n: int, only: int) -> None:
    query, key = whole(2, 3, 4, low=1), whole(1, n, 4, low=1)
    key[:, only] = -9
    allowed = torch.zeros(n, dtype=torch.bool)
    allowed[only] = True
    scores, indices = select_topk(query, key, 4, allowed)
    assert indices.tolist() == [[[only]] * 3] * 2
    assert scores.squeeze(-1).tolist() == (query * -9).sum(-1).tolist()


def test_the_allowed_key_may_be_the_only_one_of_the_second_block() -> None:
    query, key = whole(1, 2, 4), whole(1, 8193, 4)
    allowed = torch.zeros(8193, dtype=torch.bool)
    allowed[8192] = True
    assert select_topk(query, key, 4, allowed)[1].tolist() == [[[8192], [8192]]]


@pytest.mark.parametrize("n", [63, 1000, 8193])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_only_allowed_keys_are_chosen(n: int, share: float) -> None:
    query, key, allowed = whole(3, 1, 4), whole(1, n, 4), torch.rand(n) < share
    allowed[n // 2] = True
    scores, indices = select_topk(query, key, 7, allowed)
    assert (scores.tolist(), indices.tolist()) == by_sorting(query, key, 7, allowed.tolist())


def test_no_allowed_key_gives_none() -> None:
    query, key = whole(2, 3, 4), whole(1, 5, 4)
    scores, indices = select_topk(query, key, 2, torch.zeros(5, dtype=torch.bool))
    assert (scores.shape, indices.shape) == ((2, 3, 0), (2, 3, 0))


def test_no_keys_gives_none() -> None:
    scores, indices = select_topk(whole(2, 3, 4), whole(1, 0, 4), 2)
    assert (scores.shape, indices.shape) == ((2, 3, 0), (2, 3, 0))


@pytest.mark.parametrize("n", [100, 8193])
def test_bfloat16_keys_are_scored_without_rounding_the_scores(n: int) -> None:
    """Sums of up to 8 products of up to 40 * 40 need 14 bits, more than bfloat16 has."""
    query, key = whole(2, 2, 8, low=-40, high=41), whole(1, n, 8, low=-40, high=41, dtype=torch.bfloat16)
    scores, indices = select_topk(query, key, 6)
    assert (scores.tolist(), indices.tolist()) == by_sorting(query, key, 6)


@pytest.mark.parametrize("n", [63, 8193])
def test_what_stands_in_keys_that_are_not_allowed_does_not_matter(n: int) -> None:
    query, key, allowed = whole(2, 3, 4), whole(1, n, 4), torch.arange(n) % 5 != 0
    clean = select_topk(query, key, 4, allowed)
    key[:, ~allowed] = float("nan")
    poisoned = select_topk(query, key, 4, allowed)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])


def test_blocks_are_joined_as_if_there_were_one() -> None:
    """All keys alike but two, one at each side of the block's edge."""
    key = torch.zeros(1, 8200, 4)
    key[:, 8191], key[:, 8192] = 1.0, 1.0
    _, indices = select_topk(torch.ones(1, 1, 4), key, 5)
    assert indices.flatten().tolist() == [8191, 8192, 0, 1, 2]
