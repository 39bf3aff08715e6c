"""Rotary positions of a window: applied here and nowhere else; knows no cache and no selection.

While a model is attached its own rotation does nothing, so keys are cached without a position. The tokens that attention
looks at get positions 0..W-1 in reading order, with the rotation that the model's own code uses, recorded when it was
attached: partial, interleaved and scaled rotations need no code of ours (ReAttention's re-assigned positions).
"""

from collections.abc import Callable
from typing import Any

import torch

Embedding = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]
"""(x, n) -> the model's rotary embedding, mostly (cos, sin), of at least the positions 0..n-1: [1, >= n, ...] each."""


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

    def __call__(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Rotate tokens [B, heads, n, D] that stand at positions start..start+n-1."""
        if self._apply is None or self._embedding is None or x.shape[2] == 0:
            return x
        stop = start + x.shape[2]
        embedding = (part[:, start:stop] for part in self._embedding(x, stop))
        part = x[..., : self._width]
        # The model's function rotates queries and keys at once; one head stands in for the other of the two.
        rotated: torch.Tensor = self._apply(part, part[:, :1], *embedding)[0]
        if self._width == x.shape[-1]:
            return rotated
        return torch.cat([rotated, x[..., self._width :]], -1)
