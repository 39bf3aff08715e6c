"""Softmax mass of pages, against one softmax after another in plain Python numbers."""

import math

import pytest
import torch

from reattention_kernels import page_evidence
from tests.close import assert_close

T = 32


def by_softmax(query: torch.Tensor, key: torch.Tensor, filled: list[int], scaling: float) -> torch.Tensor:
    """[H, P]: each token's softmax over all filled slots, summed within each page, averaged over the tokens."""
    repeats = query.shape[0] // key.shape[0]
    keys = key.double().tolist()
    mass = torch.zeros(query.shape[0], len(filled), dtype=torch.float64)
    for head, rows in enumerate(query.double().tolist()):
        for row in rows:
            exps, pages = [], []
            for page, n in enumerate(filled):
                for vector in keys[head // repeats][page][:n]:
                    exps.append(math.exp(scaling * sum(a * b for a, b in zip(row, vector, strict=True))))
                    pages.append(page)
            for one, page in zip(exps, pages, strict=True):
                mass[head, page] += one / sum(exps) / len(rows)
    return mass


@pytest.mark.parametrize("filled", [[32], [1], [31], [0, 1, 31, 32], [32, 0, 0, 31, 1, 5], [32, 32, 7]])
@pytest.mark.parametrize(("groups", "repeats"), [(2, 1), (1, 3), (2, 4)])
def test_mass_of_pages_of_any_filling(filled: list[int], groups: int, repeats: int) -> None:
    query, key = torch.randn(groups * repeats, 3, 6), torch.randn(groups, len(filled), T, 6)
    ours = page_evidence(query, key, torch.tensor(filled), 0.7)
    assert ours.dtype == torch.float32
    assert_close("mass", ours, by_softmax(query, key, filled, 0.7), 1e-5)
    assert_close("sum", ours.sum(-1), torch.ones(groups * repeats), 1e-5)
    assert all(ours[:, page].eq(0).all() for page, n in enumerate(filled) if n == 0)


@pytest.mark.parametrize("pages", [63, 100, 257])
def test_mass_of_many_pages(pages: int) -> None:
    """257 pages are one more than are scored at a time."""
    filled = torch.randint(0, 3, (pages,)).tolist()
    query, key = torch.randn(3, 2, 4), torch.randn(1, pages, T, 4)
    ours = page_evidence(query, key, torch.tensor(filled), 1.0)
    assert_close("mass", ours, by_softmax(query, key, filled, 1.0), 1e-5)
    assert_close("sum", ours.sum(-1), torch.ones(3), 1e-5)


def test_rows_sum_to_one_over_1000_pages() -> None:
    filled = torch.randint(0, T + 1, (1000,))
    ours = page_evidence(torch.randn(4, 5, 8), torch.randn(2, 1000, T, 8), filled, 2.0)
    assert_close("sum", ours.sum(-1), torch.ones(4), 1e-5)


@pytest.mark.parametrize("filled", [[0], [0, 0, 0]])
def test_no_key_gets_no_mass(filled: list[int]) -> None:
    ours = page_evidence(torch.randn(4, 3, 6), torch.randn(2, len(filled), T, 6), torch.tensor(filled), 1.0)
    assert torch.equal(ours, torch.zeros(4, len(filled)))


def test_unfilled_slots_may_hold_anything() -> None:
    filled = torch.tensor([32, 0, 1, 31])
    query, key = torch.randn(4, 3, 6), torch.randn(2, 4, T, 6)
    clean = page_evidence(query, key, filled, 1.0)
    hole = torch.arange(T) >= filled[:, None]
    for poison in (float("nan"), float("inf"), 1e30):
        key[:, hole] = poison
        assert torch.equal(page_evidence(query, key, filled, 1.0), clean)


def test_bfloat16_keys_are_scored_in_float32() -> None:
    query, key = torch.randn(2, 3, 16), torch.randn(1, 5, T, 16).bfloat16()
    filled = [32, 9, 0, 32, 1]
    ours = page_evidence(query, key, torch.tensor(filled), 1.0)
    assert_close("mass", ours, by_softmax(query, key, filled, 1.0), 1e-5)


def test_large_scores_do_not_overflow() -> None:
    """exp(300) is beyond float32; the page with the best key has it all."""
    key = torch.zeros(1, 3, T, 2)
    key[0, 1, 4] = 30.0
    ours = page_evidence(torch.full((1, 1, 2), 5.0), key, torch.tensor([32, 32, 32]), 1.0)
    assert_close("mass", ours, torch.tensor([[0.0, 1.0, 0.0]]), 1e-6)
