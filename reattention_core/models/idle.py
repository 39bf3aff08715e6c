"""Spares an attached model its own rotation, which changes nothing; knows no positions and no model family.

While a model is attached its rotary embedding is cos = 1, sin = 0 (`rotary.py`). Its code would multiply and add all the
same: ten launches a layer, and a sixth of the GPU's time in reading documents. So the function that does it, in the
modelling file's namespace, is wrapped as long as a model of that file is attached: with such an embedding it gives queries
and keys back as they are; with any other, as models beside it have, it does what it did.
"""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any

import torch

Named = tuple[str, str]
"""A module of modelling code and a function in it."""

_MARK = "_reattention_idle"
_lock = Lock()
_wrapped: dict[Named, tuple[Callable[..., Any], int]] = {}
"""What stood where a wrapper stands now, and for how many attached models it does."""


def idle_like(cos: torch.Tensor) -> torch.Tensor:
    """Ones like `cos`, by which a wrapped function knows that it has nothing to do."""
    ones = torch.ones_like(cos)
    setattr(ones, _MARK, True)
    return ones


def does_nothing(apply: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function, called like this but with cos = 1 and sin = 0, gives its `q` and `k` back in every bit.

    Some reorder dimensions, and have to be run.
    """
    try:
        given = inspect.signature(apply).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # it is called otherwise, or does not tell
        return False
    if list(given)[:4] != ["q", "k", "cos", "sin"]:
        return False
    found = apply(**{**given, "cos": torch.ones_like(given["cos"]), "sin": torch.zeros_like(given["sin"])})
    return all(torch.equal(one, other) for one, other in zip(found, (given["q"], given["k"]), strict=True))


class Idle:
    """Functions that are wrapped until `remove`.

    Args:
        functions: those that `does_nothing` said it of.
    """

    def __init__(self, functions: set[Named]) -> None:
        self._functions = functions
        with _lock:
            for module, name in functions:
                namespace = vars(sys.modules[module])
                original, users = _wrapped.get((module, name), (namespace[name], 0))
                _wrapped[module, name] = original, users + 1
                if not users:
                    namespace[name] = _sparing(original)

    def remove(self) -> None:
        """Leave the functions as they were, once the last model is detached; calling it twice does nothing."""
        with _lock:
            for module, name in self._functions:
                original, users = _wrapped.pop((module, name))
                if users > 1:
                    _wrapped[module, name] = original, users - 1
                else:
                    vars(sys.modules[module])[name] = original
            self._functions = set()


def _sparing(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for embeddings that change nothing."""

    @wraps(apply)
    def call(q: Any, k: Any, cos: Any, *args: Any, **kwargs: Any) -> Any:
        return (q, k) if hasattr(cos, _MARK) else apply(q, k, cos, *args, **kwargs)

    return call
