"""`REATTENTION_KERNELS` says which implementation runs, and nothing falls back unheard."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reattention_kernels import attend, most_voted, page_evidence, select_topk
from reattention_kernels.dispatch import KernelUnavailableError

OPERATIONS: dict[str, Callable[[], Any]] = {
    "select_topk": lambda: select_topk(torch.ones(2, 1, 4), torch.ones(1, 3, 4), 1),
    "most_voted": lambda: most_voted(torch.tensor([3, 3, 1]), 1),
    "page_evidence": lambda: page_evidence(torch.ones(2, 1, 4), torch.ones(1, 2, 32, 4), torch.tensor([32, 1]), 1.0),
    "attend": lambda: attend(torch.ones(1, 2, 1, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), scaling=1.0),
}


def tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("choice", ["cuda", "Reference", "", "auto "])
def test_an_unknown_choice_is_refused_with_the_choices_there_are(
    monkeypatch: pytest.MonkeyPatch, name: str, choice: str
) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", choice)
    with pytest.raises(KernelUnavailableError, match="auto, reference, triton") as error:
        OPERATIONS[name]()
    assert repr(choice) in str(error.value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_is_an_error_and_not_a_silent_fall_back(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=f"{name} has no Triton kernel"):
        OPERATIONS[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_reference_and_auto_give_what_no_choice_gives(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("REATTENTION_KERNELS", raising=False)
    unset = tensors(OPERATIONS[name]())
    for choice in ("reference", "auto"):
        monkeypatch.setenv("REATTENTION_KERNELS", choice)
        assert all(torch.equal(a, b) for a, b in zip(tensors(OPERATIONS[name]()), unset, strict=True))


def test_the_choice_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError):
        most_voted(torch.tensor([1]), 1)
    monkeypatch.setenv("REATTENTION_KERNELS", "reference")
    assert most_voted(torch.tensor([1]), 1)[0].tolist() == [1]
