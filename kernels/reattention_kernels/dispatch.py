"""Picks the implementation of each operation; knows no arithmetic.

`REATTENTION_KERNELS` says which: `auto` (Triton for tensors on a CUDA GPU, the torch reference elsewhere), `reference`
(always torch) or `triton` (an error wherever the kernel cannot run, so that a machine meant to run it cannot fall back
unheard). With `auto` a fallback on a GPU is heard once, with its reason.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib import import_module
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch

from reattention_kernels.evidence import reference as evidence
from reattention_kernels.page_copying import reference as page_copying
from reattention_kernels.page_writing import reference as page_writing
from reattention_kernels.rotation import reference as rotation
from reattention_kernels.selected_attention import reference as selected_attention
from reattention_kernels.topk import reference as topk
from reattention_kernels.votes import reference as votes

CHOICES = ("auto", "reference", "triton")

OLDEST = (8, 0)
"""The first compute capability whose tensor cores take bfloat16."""

Args = ParamSpec("Args")
Result = TypeVar("Result")


class KernelUnavailableError(RuntimeError):
    """`REATTENTION_KERNELS` asks for an implementation that cannot run here."""


def _dispatched(reference: Callable[Args, Result], module: str) -> Callable[Args, Result]:
    """The operation as callers see it: reads the choice at every call, so that a test can change it.

    Args:
        reference: the operation in torch.
        module: where the kernel of the same name is, imported when it is first needed.
    """

    @wraps(reference)
    def operation(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        choice = os.environ.get("REATTENTION_KERNELS", "auto")
        if choice not in CHOICES:
            raise KernelUnavailableError(f"REATTENTION_KERNELS={choice!r}: choose one of {', '.join(CHOICES)}")
        device = _device(chain(args, kwargs.values()))
        if choice == "reference" or (choice == "auto" and device.type != "cuda"):
            return reference(*args, **kwargs)
        try:
            kernel: Callable[Args, Result] = getattr(_kernels(module, device), reference.__name__)
            return kernel(*args, **kwargs)
        except NotImplementedError as error:
            if choice == "triton":
                raise KernelUnavailableError(
                    f"REATTENTION_KERNELS=triton, but {reference.__name__} cannot run its Triton kernel here: {error}"
                ) from error
            _say_once(f"{reference.__name__} runs in torch instead of Triton, which is slower: {error}")
            return reference(*args, **kwargs)

    return operation


def fused(device: torch.device) -> bool:
    """Whether operations on this device run as Triton kernels, so that a fused one is quicker than its parts in torch."""
    choice = os.environ.get("REATTENTION_KERNELS", "auto")
    if choice == "reference" or (choice == "auto" and device.type != "cuda"):
        return False
    try:
        return bool(_kernels("reattention_kernels.selected_attention.triton_kernel", device))
    except NotImplementedError:
        return choice == "triton"  # the operation itself will say why it cannot run


def _device(values: Iterable[Any]) -> torch.device:
    """Where the first tensor is; all of an operation's are on one device."""
    return next(value.device for value in values if isinstance(value, torch.Tensor))


@cache
def _kernels(module: str, device: torch.device) -> Any:
    """The module of a kernel.

    Raises:
        NotImplementedError: it cannot run on this device.
    """
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        raise NotImplementedError(f"the GPU's compute capability is {capability}, the kernels need {OLDEST} or later")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            f"the tensors are on {device}; Triton needs a CUDA GPU (TRITON_INTERPRET=1 for tests)"
        )
    try:
        return import_module(module)
    except ImportError as error:
        raise NotImplementedError(f"Triton is missing ({error}): pip install triton") from error


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


select_topk = _dispatched(topk.select_topk, "reattention_kernels.topk.triton_kernel")
one_per_block = _dispatched(topk.one_per_block, "reattention_kernels.topk.published_kernel")
most_voted = _dispatched(votes.most_voted, "reattention_kernels.votes.triton_kernel")
page_evidence = _dispatched(evidence.page_evidence, "reattention_kernels.evidence.triton_kernel")
attend_selected = _dispatched(
    selected_attention.attend_selected, "reattention_kernels.selected_attention.triton_kernel"
)
write_pages = _dispatched(page_writing.write_pages, "reattention_kernels.page_writing.triton_kernel")
copy_pages = _dispatched(page_copying.copy_pages, "reattention_kernels.page_copying.triton_kernel")
rotate = _dispatched(rotation.rotate, "reattention_kernels.rotation.triton_kernel")
