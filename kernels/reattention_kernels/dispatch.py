"""Picks the implementation of each operation; knows no arithmetic.

`REATTENTION_KERNELS` says which: `auto` (the fastest one there is, today the torch reference), `reference` (always
torch) or `triton` (an error where no Triton kernel exists, so that a machine meant to run them cannot fall back unheard).
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from reattention_kernels.attention import reference as attention
from reattention_kernels.evidence import reference as evidence
from reattention_kernels.topk import reference as topk
from reattention_kernels.votes import reference as votes

CHOICES = ("auto", "reference", "triton")

Args = ParamSpec("Args")
Result = TypeVar("Result")


class KernelUnavailableError(RuntimeError):
    """`REATTENTION_KERNELS` asks for an implementation that does not exist."""


def _dispatched(reference: Callable[Args, Result]) -> Callable[Args, Result]:
    """The operation as callers see it: reads the choice at every call, so that a test can change it."""

    @wraps(reference)
    def operation(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        choice = os.environ.get("REATTENTION_KERNELS", "auto")
        if choice not in CHOICES:
            raise KernelUnavailableError(f"REATTENTION_KERNELS={choice!r}: choose one of {', '.join(CHOICES)}")
        if choice == "triton":
            raise KernelUnavailableError(
                f"{reference.__name__} has no Triton kernel yet: unset REATTENTION_KERNELS or set it to 'reference'"
            )
        return reference(*args, **kwargs)

    return operation


select_topk = _dispatched(topk.select_topk)
most_voted = _dispatched(votes.most_voted)
page_evidence = _dispatched(evidence.page_evidence)
attend = _dispatched(attention.attend)
