"""Where the tests of an operation run: its reference and its kernel, on the CPU and, by marker, on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from reattention_kernels.launch import INTERPRETED

_interpreter = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")


def on_devices(*names: str, cpu: Any, cuda: Any) -> pytest.MarkDecorator:
    """Tests of a kernel alone: `device`, and values that suit the slow interpreter or a GPU."""
    cases = [pytest.param("cpu", *values, marks=_interpreter) for values in cpu]
    cases += [pytest.param("cuda", *values, marks=pytest.mark.gpu) for values in cuda]
    return pytest.mark.parametrize(("device", *names), cases)


def both(reference: Callable[..., Any], kernel: Callable[..., Any]) -> pytest.MarkDecorator:
    """Tests of what both must do: `device` and `operation`."""
    return pytest.mark.parametrize(
        ("device", "operation"),
        [
            pytest.param("cpu", reference, id="reference-cpu"),
            pytest.param("cpu", kernel, id="kernel-cpu", marks=_interpreter),
            pytest.param("cuda", reference, id="reference-cuda", marks=pytest.mark.gpu),
            pytest.param("cuda", kernel, id="kernel-cuda", marks=pytest.mark.gpu),
        ],
    )


@contextmanager
def poisoned(device: str) -> Iterator[None]:
    """New tensors hold NaN, or the largest whole number, until something is written to them."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1, device=device).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
