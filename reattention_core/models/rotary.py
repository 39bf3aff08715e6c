"""Stands in for a model's rotary embedding, and records how the model applies it; knows no cache and no attention.

transformers' models compute (cos, sin) in one or more `*RotaryEmbedding` modules and hand them to every attention layer,
which calls a module-level `apply_rotary_pos_emb`. With cos = 1 and sin = 0 that call changes nothing, so keys reach the
cache un-rotated. Position ids of 0 would not do: YaRN scales cos(0) (notes: tried, gpt-oss fails).
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from reattention_core.models.idle import Named, does_nothing, idle_like
from reattention_core.positions import Rotation
from reattention_kernels.launch import next_power

APPLY = re.compile(r"^apply_\w*rot\w*$")
"""Names under which transformers' modelling files define the function that rotates queries and keys."""

SHIFTING = ("dynamic", "longrope")
"""Rope types whose embedding of a position changes once a window grows past the original length."""


class StandIn:
    """Replaces `forward` of one rotary module while `active`; gives out the true embedding all the time."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.active = module, False
        self._forward = module.forward
        self._tables: dict[tuple[Any, ...], tuple[torch.Tensor, ...]] = {}
        self.latest: list[_Made] | None = None
        module.forward = self._stand_in

    def remove(self) -> None:
        """Give the module its own `forward` back."""
        del self.module.forward

    def _stand_in(self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.latest is not None:
            found = self._forward(x, position_ids, *args, **kwargs)
            self.latest.append(_Made(self, found, args, kwargs))
            return found
        if not self.active:
            return self._forward(x, position_ids, *args, **kwargs)
        # Zeros keep dynamic scaling from reacting to positions that our windows never reach.
        found = self._forward(x, torch.zeros_like(position_ids), *args, **kwargs)
        if isinstance(found, tuple):
            return idle_like(found[0]), *(torch.zeros_like(part) for part in found[1:])
        return torch.ones_like(found)

    def embedding(
        self, x: torch.Tensor, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        """The true embedding of at least the positions 0..n-1; one table serves all layers alike."""
        key = (x.device, x.dtype, args, tuple(kwargs.items()))
        table = self._tables.get(key)
        if table is not None and table[0].shape[1] >= n and self._fixed:
            return table
        length = next_power(n) if self._fixed else n
        with torch.inference_mode(False), torch.no_grad():  # a pass with gradients may be the next to use it
            like = torch.empty(0, dtype=x.dtype, device=x.device)
            found = self._forward(like, torch.arange(length, device=x.device)[None], *args, **kwargs)
        self._tables[key] = found if isinstance(found, tuple) else (found,)
        return self._tables[key]

    @property
    def _fixed(self) -> bool:
        kinds = getattr(self.module, "rope_type", "default")
        kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
        return not any(kind in SHIFTING for kind in kinds)

    @property
    def reach(self) -> int | None:
        """Positions up to which embeddings stay as they are, or None where they always do.

        Beyond it every key in a window would have to be rotated anew, so windows end there.
        """
        length = getattr(self.module, "original_max_seq_len", None)
        if self._fixed:
            return None
        original = getattr(self.module.config, "rope_parameters", {}).get("original_max_position_embeddings", length)
        return original if isinstance(original, int) else None


@dataclass
class _Made:
    """An embedding that a rotary module gave out, and how to have it give the same kind again."""

    stand_in: StandIn
    found: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.found if isinstance(self.found, tuple) else (self.found,)

    def embedding(self, x: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
        return self.stand_in.embedding(x, n, self.args, self.kwargs)


@dataclass
class _Call:
    """How one attention module rotated: which function, over how many dimensions, with whose embedding."""

    apply: Callable[..., Any]
    width: int
    embedding: Any


class Recorded:
    """How a stock model rotated in one forward pass.

    Attributes:
        spared: functions that need not be run while the model is attached, see `idle`.
    """

    def __init__(self) -> None:
        self.spared: set[Named] = set()
        self.calls: dict[torch.nn.Module, _Call] = {}
        self.made: list[_Made] = []

    def rotation(self, module: torch.nn.Module) -> Rotation:
        """What an attention module did."""
        call = self.calls.get(module)
        if call is None:
            return Rotation()
        # A layer that was given a slice or copy is served by the first rotary module, the only candidate there is.
        given = (entry for entry in self.made if any(part is call.embedding for part in entry.parts))
        source = next(given, self.made[0])
        return Rotation(call.apply, source.embedding, call.width)


@contextmanager
def recording(attentions: list[torch.nn.Module], stand_ins: list[StandIn]) -> Iterator[Recorded]:
    """Watch one forward pass of the stock model; afterwards it is known how each attention module rotates.

    Args:
        attentions: the model's attention modules.
        stand_ins: its rotary modules' stand-ins, not active.
    """
    recorded, looked_at = Recorded(), set[Named]()
    running: list[torch.nn.Module | None] = [None]

    def watched(apply: Callable[..., Any], named: Named) -> Callable[..., Any]:
        def call(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            module = running[0]
            if module is not None:
                embedding = args[1] if len(args) > 1 else kwargs.get("cos")
                recorded.calls[module] = _Call(apply, q.shape[-1], embedding)
                if named not in looked_at:
                    looked_at.add(named)
                    if does_nothing(apply, q, *args, **kwargs):
                        recorded.spared.add(named)
            return apply(q, *args, **kwargs)

        return call

    replaced = []
    for name in sorted({type(module).__module__ for module in attentions}):
        namespace = vars(sys.modules[name])
        for function in [n for n, value in namespace.items() if APPLY.match(n) and callable(value)]:
            replaced.append((namespace, function, namespace[function]))
            namespace[function] = watched(namespace[function], (name, function))
    hooks = []
    for module in attentions:
        hooks.append(module.register_forward_pre_hook(lambda m, _: running.__setitem__(0, m)))
        hooks.append(module.register_forward_hook(lambda m, _, __: running.__setitem__(0, None)))
    for stand_in in stand_ins:
        stand_in.latest = []
    try:
        yield recorded
        recorded.made += [made_by for stand_in in stand_ins for made_by in stand_in.latest or ()]
    finally:
        for namespace, function, original in replaced:
            namespace[function] = original
        for hook in hooks:
            hook.remove()
        for stand_in in stand_ins:
            stand_in.latest = None
