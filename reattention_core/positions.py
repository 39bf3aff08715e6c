"""Rotary positions of a window: applied here and nowhere else; knows no cache and no selection.

While a model is attached its own rotation does nothing, so keys are cached without a position. The tokens that attention
looks at get positions 0..W-1 in reading order, with the rotation that the model's own code uses, recorded when it was
attached: partial, interleaved and scaled rotations need no code of ours (ReAttention's re-assigned positions).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from reattention_kernels import fused, rotate
from reattention_kernels.rotation import reference

Embedding = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]
"""(x, n) -> the model's rotary embedding, mostly (cos, sin), of at least the positions 0..n-1: [1, >= n, ...] each."""


class Angles(NamedTuple):
    """A rotation as the fused kernel applies it.

    Attributes:
        cos: [positions, width / 2] in the type that the model works them out in.
        sin: like `cos`.
        interleaved: dimensions 2i and 2i + 1 turn together; else i and i + width / 2 do.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool


class Rotation:
    """The rotation of one attention layer at window positions.

    Args:
        apply: the model's own `apply_rotary_pos_emb`, or None for a layer without positions.
        embedding: the layer's rotary embedding.
        width: leading dimensions of a head that are rotated.
    """

    def __init__(
        self,
        apply: Callable[..., Any] | None = None,
        embedding: Embedding | None = None,
        width: int = 0,
    ) -> None:
        self._apply, self._embedding, self._width = apply, embedding, width
        self._convention: _Convention | None = None
        self._tried = False

    def __call__(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Rotate tokens [B, heads, n, D] that stand at positions start..start+n-1."""
        if self._apply is None or self._embedding is None or x.shape[2] == 0:
            return x
        # A kernel has no gradients.
        angles = self.angles(x, start + x.shape[2]) if fused(x.device) and not x.requires_grad else None
        if angles is None:
            return self._by_the_model(x, start)
        return rotate(x, angles.cos, angles.sin, start, interleaved=angles.interleaved)

    def _by_the_model(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """The same by the model's own function."""
        assert self._apply is not None and self._embedding is not None
        stop = start + x.shape[2]
        embedding = (part[:, start:stop] for part in self._embedding(x, stop))
        part = x[..., : self._width]
        # The model's function rotates queries and keys at once; one head of one row stands in for the other of the two.
        rotated: torch.Tensor = self._apply(part, part[:1, :1], *embedding)[0]
        if self._width == x.shape[-1]:
            return rotated
        return torch.cat([rotated, x[..., self._width :]], -1)

    def angles(self, x: torch.Tensor, n: int) -> Angles | None:
        """The rotation of positions 0..n-1 and more as angles, or None where the model rotates in a way of its own.

        Args:
            x: anything of the type and device that will be rotated.
            n: positions needed.
        """
        if self._apply is None or self._embedding is None:
            nothing = torch.empty(1, 0, dtype=torch.float32, device=x.device)
            return Angles(nothing, nothing, False)
        if not self._tried:
            self._convention, self._tried = self._find_convention(x.device), True
        if self._convention is None:
            return None
        cos, sin = self._embedding(x, n)
        return _halved(cos, sin, self._convention)

    def _find_convention(self, device: torch.device) -> "_Convention | None":
        """Which of the known conventions the model's own function follows: found by trying."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 2, 8, self._width, generator=generator).to(device)
        embedding = self._embedding(x, x.shape[2]) if self._embedding is not None else ()
        if len(embedding) != 2:
            return None
        truth, columns = self._by_the_model(x, 0), embedding[0].shape[-1]
        for interleaved in (False, True):
            # The columns hold every angle twice, one behind another or side by side, or once.
            for pairs, step in ((columns // 2, 1), (columns // 2, 2), (columns, 1)):
                if 2 * pairs <= self._width:
                    found = _Convention(pairs, step, interleaved)
                    ours = reference.rotate(x, *_halved(*embedding, found)[:2], interleaved=interleaved)
                    if torch.allclose(ours, truth, rtol=0, atol=1e-5):
                        return found
        return None


class _Convention(NamedTuple):
    """How a model's rotary embedding gives the angles of pairs of dimensions.

    Attributes:
        pairs: pairs that turn.
        step: of the embedding's columns, every how many-th holds another pair's angle.
        interleaved: dimensions 2i and 2i + 1 turn together; else i and i + pairs do.
    """

    pairs: int
    step: int
    interleaved: bool


@lru_cache(maxsize=8)
def _halved(cos: torch.Tensor, sin: torch.Tensor, convention: _Convention) -> Angles:
    """One angle for each pair of dimensions, out of an embedding [1, n, columns].

    Kept for the other layers, which share the embedding: a tensor is looked up by identity.
    """
    columns = slice(0, convention.pairs * convention.step, convention.step)
    cos, sin = (part[0, :, columns].contiguous() for part in (cos, sin))
    return Angles(cos, sin, convention.interleaved)
