"""`REATTENTION_KERNELS` says which implementation runs, and nothing falls back unheard."""

import builtins
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import reattention_kernels
from reattention_kernels import dispatch
from reattention_kernels.dispatch import KernelUnavailableError
from reattention_kernels.launch import INTERPRETED
from tests.ops.test_page_writing import batch, bits
from tests.ops.test_rotation import tokens
from tests.ops.test_selected_attention import window

ROOT = Path(__file__).parents[2]


def topk() -> dict[str, Any]:
    return dict(query=torch.ones(1, 2, 1, 4), key=torch.arange(24.0).reshape(1, 1, 6, 4), k=2)


def votes() -> dict[str, Any]:
    return dict(index=torch.tensor([[3, 3, 1]]), bins=4, clip=2)


def question() -> dict[str, Any]:
    return dict(
        query=torch.ones(2, 1, 4), key=torch.ones(1, 2, 32, 4), filled=torch.tensor([32, 1]), scaling=1.0
    )  # fmt: skip


def copied() -> dict[str, Any]:
    """Three pages of two heads."""
    source, target = torch.randn(2, 5, 4, 8), torch.zeros(2, 4, 4, 8)
    return {"target": target, "places": torch.tensor([3, 0, 1]), "source": source, "pages": torch.tensor([1, 4, 2])}


OPERATIONS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "select_topk": ("topk.triton_kernel", topk),
    "one_per_block": ("topk.published_kernel", topk),
    "most_voted": ("votes.triton_kernel", votes),
    "page_evidence": ("evidence.triton_kernel", question),
    "attend_selected": ("selected_attention.triton_kernel", window),
    "write_pages": ("page_writing.triton_kernel", lambda: batch(size=4)),
    "copy_pages": ("page_copying.triton_kernel", copied),
    "rotate": ("rotation.triton_kernel", tokens),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")


def run(name: str) -> list[torch.Tensor]:
    """What an operation gives, or what it wrote."""
    torch.manual_seed(3)
    given = OPERATIONS[name][1]()
    result = getattr(reattention_kernels, name)(**given)
    if result is None:
        return [given["target"]] if name == "copy_pages" else bits(given)
    return list(result) if isinstance(result, tuple) else [result]


class Seen(Exception):
    """A spy was called."""


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel says that it was called."""

    def spy(*args: Any, **kwargs: Any) -> None:
        raise Seen

    for name, (module, _) in OPERATIONS.items():
        monkeypatch.setattr(import_module(f"reattention_kernels.{module}"), name, spy)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dispatch takes CPU tensors for those of a GPU, and has said nothing yet; the interpreter runs the kernels."""
    dispatch._say_once.cache_clear()
    dispatch._kernels.cache_clear()
    monkeypatch.setattr(dispatch, "_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    yield
    dispatch._say_once.cache_clear()
    dispatch._kernels.cache_clear()


def test_every_operation_that_is_dispatched_is_in_the_table() -> None:
    dispatched = {
        name for name in reattention_kernels.__all__ if hasattr(getattr(reattention_kernels, name), "__wrapped__")
    }
    assert dispatched == set(OPERATIONS)


@every_operation
@pytest.mark.parametrize("choice", ["cuda", "Reference", "", "auto "])
def test_an_unknown_choice_is_refused_with_the_choices_there_are(
    monkeypatch: pytest.MonkeyPatch, name: str, choice: str
) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", choice)
    with pytest.raises(KernelUnavailableError, match="auto, reference, triton") as error:
        run(name)
    assert repr(choice) in str(error.value)


@every_operation
@pytest.mark.usefixtures("spied")
def test_on_the_cpu_the_reference_runs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("REATTENTION_KERNELS", raising=False)
    unset = run(name)
    for choice in ("reference", "auto"):
        monkeypatch.setenv("REATTENTION_KERNELS", choice)
        assert all(torch.equal(a, b) for a, b in zip(run(name), unset, strict=True))


@every_operation
@interpreted
def test_triton_gives_what_the_kernel_gives(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", "reference")
    expected = run(name)
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    for ours, theirs in zip(run(name), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@every_operation
@interpreted
@pytest.mark.usefixtures("spied")
def test_triton_runs_the_kernel(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(Seen):
        run(name)


@every_operation
@interpreted
@pytest.mark.usefixtures("spied", "on_a_gpu")
def test_on_a_gpu_the_kernel_runs_unless_the_reference_is_asked_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for choice in ("auto", "triton"):
        monkeypatch.setenv("REATTENTION_KERNELS", choice)
        with pytest.raises(Seen):
            run(name)
    monkeypatch.setenv("REATTENTION_KERNELS", "reference")
    run(name)


def test_triton_without_a_gpu_is_an_error_that_names_operation_and_reason() -> None:
    """In a process of its own, since Triton's interpreter is on in this one."""
    code = """
from tests.ops.test_dispatch import OPERATIONS, run
for name in OPERATIONS:
    try:
        run(name)
    except Exception as error:
        print(name, "|", type(error).__name__, "|", error)
    else:
        print(name, "ran")
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    env |= {"REATTENTION_KERNELS": "triton", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(OPERATIONS)
    for name, line in zip(OPERATIONS, lines, strict=True):
        assert line.startswith(f"{name} | KernelUnavailableError | REATTENTION_KERNELS=triton, but {name} cannot run")
        assert "the tensors are on cpu; Triton needs a CUDA GPU" in line


UNSUPPORTED = {
    "page_evidence": (
        lambda: question() | {"key": torch.ones(1, 2, 24, 4), "filled": torch.tensor([24, 1])},
        "pages of 24 tokens",
    ),
    "one_per_block": (lambda: topk() | {"size": 4}, "blocks of 4 keys"),
}


@interpreted
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_a_kernel_cannot_do_is_heard_once_with_its_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given, reason = UNSUPPORTED[name]
    operation = getattr(reattention_kernels, name)
    monkeypatch.setenv("REATTENTION_KERNELS", "reference")
    expected = operation(**given())
    monkeypatch.setenv("REATTENTION_KERNELS", "auto")
    with pytest.warns(RuntimeWarning, match=f"{name} runs in torch instead of Triton, .*{reason}") as heard:
        ours = operation(**given())
    assert [warning.filename for warning in heard] == [__file__], "the warning points at the caller"
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operation(**given())
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=f"{name} cannot run its Triton kernel here: {reason}"):
        operation(**given())


@every_operation
@pytest.mark.usefixtures("on_a_gpu")
def test_an_old_gpu_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setenv("REATTENTION_KERNELS", "auto")
    with pytest.warns(RuntimeWarning, match=rf"{name} .*\(7, 5\).*\(8, 0\) or later"):
        run(name)
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=r"\(7, 5\)"):
        run(name)


@every_operation
@pytest.mark.usefixtures("on_a_gpu")
def test_without_triton_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = f"reattention_kernels.{OPERATIONS[name][0]}"
    real = builtins.__import__

    def without(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return real(wanted, *args, **kwargs)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("REATTENTION_KERNELS", "auto")
    with pytest.warns(RuntimeWarning, match=f"{name} .*No module named 'triton'.*pip install triton"):
        run(name)
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match="pip install triton"):
        run(name)


def test_the_choice_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REATTENTION_KERNELS", "none")
    with pytest.raises(KernelUnavailableError):
        run("most_voted")
    monkeypatch.setenv("REATTENTION_KERNELS", "reference")
    assert run("most_voted")[0].tolist() == [[1, 3]]


@pytest.mark.gpu
@every_operation
def test_tensors_on_a_gpu_run_the_kernel(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`window` and `batch` take the device first."""
    called = []
    module = import_module(f"reattention_kernels.{OPERATIONS[name][0]}")
    kernel = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: called.append(name) or kernel(*args, **kwargs))
    given = {"attend_selected": lambda: window("cuda"), "write_pages": lambda: batch("cuda", size=4)}
    arguments = given[name]() if name in given else {
        n: v.to("cuda", torch.bfloat16 if v.is_floating_point() else v.dtype) if isinstance(v, torch.Tensor) else v
        for n, v in OPERATIONS[name][1]().items()
    }  # fmt: skip
    monkeypatch.setenv("REATTENTION_KERNELS", "auto")
    getattr(reattention_kernels, name)(**arguments)
    assert called == [name]
