"""Attention of a window's last rows, against one query after another in double precision."""

import math

import pytest
import torch

from reattention_kernels import attend
from tests.close import assert_close


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    hidden: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, H, Q, Dv] in float64."""
    batch, heads, rows, _ = query.shape
    width, repeats = key.shape[2], heads // key.shape[1]
    out = torch.zeros(batch, heads, rows, value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for q in range(rows):
                place = width - rows + q
                seen = list(range(place + 1))
                if sliding_window is not None:
                    seen = [j for j in seen if place - j < sliding_window]
                if hidden is not None:
                    mask = hidden.expand(batch, heads, 1, width)[b, h, 0]
                    seen = [j for j in seen if not mask[j]]
                scores = key[b, h // repeats, seen].double() @ query[b, h, q].double() * scaling
                if softcap is not None:
                    scores = torch.tensor([softcap * math.tanh(s / softcap) for s in scores.tolist()]).double()
                weights = scores.exp()
                total = weights.sum() + (0.0 if sinks is None else math.exp(sinks[h].item()))
                out[b, h, q] = weights @ value[b, h // repeats, seen].double() / total
    return out


def heads_and_keys(
    width: int, rows: int, repeats: int, batch: int = 2, groups: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, H, Q, 8], keys [B, G, W, 8] and values [B, G, W, 5], which are narrower."""
    query = torch.randn(batch, groups * repeats, rows, 8)
    return query, torch.randn(batch, groups, width, 8), torch.randn(batch, groups, width, 5)


@pytest.mark.parametrize(("width", "rows"), [(1, 1), (2, 2), (63, 63), (63, 1), (100, 7), (1000, 3), (8193, 1)])
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_causal_attention_of_the_last_rows(width: int, rows: int, repeats: int) -> None:
    query, key, value = heads_and_keys(width, rows, repeats, batch=1)
    ours = attend(query, key, value, scaling=0.4)
    assert_close("attention", ours, one_by_one(query, key, value, 0.4), 1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("with_hidden", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 1, 5, 1000])
@pytest.mark.parametrize(("width", "rows"), [(9, 9), (21, 1), (30, 4)])
def test_every_option_with_every_other(
    width: int, rows: int, sliding_window: int | None, with_hidden: bool, with_sinks: bool, softcap: float | None
) -> None:
    query, key, value = heads_and_keys(width, rows, 3, batch=1)
    options = {
        "sliding_window": sliding_window,
        "softcap": softcap,
        "sinks": torch.randn(6) if with_sinks else None,
        "hidden": None,
    }
    if with_hidden:
        # Only keys that no row needs as its last: a row that sees nothing has no attention to speak of.
        options["hidden"] = torch.rand(1, 6, 1, width) < 0.4
        options["hidden"][..., width - rows :] = False
    ours = attend(query, key, value, scaling=0.6, **options)
    assert_close("attention", ours, one_by_one(query, key, value, 0.6, **options), 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 6), (2, 6)])
def test_hidden_keys_for_each_row_of_the_batch_or_head_or_for_all(shape: tuple[int, int]) -> None:
    query, key, value = heads_and_keys(50, 1, 3)
    hidden = torch.rand(*shape, 1, 50) < 0.5
    hidden[..., -1] = False
    ours = attend(query, key, value, scaling=0.6, hidden=hidden)
    assert_close("attention", ours, one_by_one(query, key, value, 0.6, hidden), 1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sliding_window", [None, 4])
@pytest.mark.parametrize("rows", [5, 12])
def test_no_row_sees_a_later_key(rows: int, sliding_window: int | None, softcap: float | None) -> None:
    query, key, value = heads_and_keys(12, rows, 1)
    before = attend(query, key, value, scaling=0.3, sliding_window=sliding_window, softcap=softcap)
    key[:, :, 10:] = -key[:, :, 10:]
    value[:, :, 10:] = 1e6
    after = attend(query, key, value, scaling=0.3, sliding_window=sliding_window, softcap=softcap)
    assert_close("rows before the change", after[:, :, :-2], before[:, :, :-2], 1e-6)
    assert after[:, :, -2:].min() > 100, "the rows that do see them"


def test_a_sink_takes_weight_and_gives_nothing() -> None:
    query, key, value = heads_and_keys(10, 2, 1)
    none = attend(query, key, value, scaling=1.0)
    weak = attend(query, key, value, scaling=1.0, sinks=torch.full((2,), -1e4))
    strong = attend(query, key, value, scaling=1.0, sinks=torch.full((2,), 1e4))
    assert_close("without weight", weak, none, 1e-6)
    assert torch.equal(strong, torch.zeros_like(strong))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_result_has_the_type_of_the_values(softcap: float | None) -> None:
    query, key, value = (t.bfloat16() for t in heads_and_keys(63, 5, 4))
    ours = attend(query, key, value, scaling=0.35, softcap=softcap)
    assert ours.dtype == torch.bfloat16
    assert_close("attention", ours, one_by_one(query, key, value, 0.35, softcap=softcap), 2e-2)
