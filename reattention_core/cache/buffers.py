"""The cache of a recorded forward pass: tails of fixed size, written where the device says; knows no recording.

A CUDA graph replays the same launches on the same memory, so how long the tail is must stand on the device, and the tail
itself may not move.
"""

from collections.abc import Sequence
from copy import copy

import torch

from reattention_core.cache.kv_cache import ContextCache, ContextLayer
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.select.base import Reader
from reattention_kernels import PageTable


class BufferLayer(ContextLayer):
    """A layer whose tail is a buffer.

    Args:
        index: which layer of the model this is.
        pages: the corpus below the tail.
        shape: (G, key D, value D).
        room: tokens of the buffer.
        like: a tensor of the tail's type and device.
        position: [n] int64, where the pass writes its n tokens.
        most: tokens the tail may have in any question, as far as attention must have angles for them.
        rows: of the batch.
    """

    def __init__(
        self,
        index: int,
        pages: Pages,
        shape: tuple[int, int, int],
        room: int,
        like: torch.Tensor,
        position: torch.Tensor,
        most: int,
        rows: int = 1,
    ) -> None:
        super().__init__(index, pages, room)
        groups, key_dim, value_dim = shape
        # Zeros, as nothing read by mistake may be NaN; full from the start, as its length is on the device alone.
        self.tail_keys.append(like.new_zeros(rows, groups, room, key_dim))
        self.tail_values.append(like.new_zeros(rows, groups, room, value_dim))
        self._position, self._most = position, most

    def elsewhere(self, position: torch.Tensor) -> "BufferLayer":
        """The same tail for a pass that writes other positions [n]."""
        other = copy(self)
        other._position = position
        return other

    @property
    def n_tail(self) -> int:
        """The most it may come to in any question."""
        return self._most

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the pass's keys and values [B, G, n, D] at its positions."""
        self.is_initialized = True
        self.tail_keys.storage.index_copy_(2, self._position, key_states)
        self.tail_values.storage.index_copy_(2, self._position, value_states)
        return key_states, value_states


class BufferCache(ContextCache):
    """The layers of a recorded pass.

    Args:
        shapes: (G, key D, value D) of every layer.
        reader: what is read; it must answer alike in every replay.
        window: tokens the model was trained on.
        pages: the corpus.
        table: the pages that the reader's selection names, whose content may change between replays.
        like: a tensor of the tail's type and device.
        room: tokens of the tail.
        position: [n] int64, where the pass writes its n tokens.
        count: [1] int32, tokens of the tail after the pass.
        rows: of the batch, each with a tail of its own.
    """

    layers: list[BufferLayer]  # type: ignore[assignment]

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        reader: Reader,
        window: int,
        pages: Pages,
        table: PageTable,
        like: torch.Tensor,
        room: int,
        position: torch.Tensor,
        count: torch.Tensor,
        rows: int = 1,
    ) -> None:
        super().__init__(0, reader, window, pages)
        most = min(window, table.pages.shape[-1] * PAGE + room)
        self.layers = [BufferLayer(i, pages, shape, room, like, position, most, rows) for i, shape in enumerate(shapes)]
        self._counted = count
        self.held = []

    def elsewhere(self, position: torch.Tensor, count: torch.Tensor) -> "BufferCache":
        """The same tails for a pass that writes other positions; arguments as above."""
        other = copy(self)
        other.layers = [layer.elsewhere(position) for layer in self.layers]
        other._counted, other.held = count, []
        return other

    def count(self, layer: ContextLayer) -> torch.Tensor:
        """Tokens of the tail, as the device knows them."""
        return self._counted
