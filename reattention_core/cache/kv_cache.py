"""The cache a forward pass sees: a private tail of new tokens over shared, read-only pages; knows no selection rule.

transformers is told of the tail alone: `get_seq_length` starts at 0 however large the corpus below is, so `generate`
and every model run unchanged. A fork is a new `ContextCache` over the same `Pages`: it copies nothing.
"""

from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from reattention_core.cache.growing import Growing
from reattention_core.cache.pages import Pages

if TYPE_CHECKING:
    from reattention_core.positions import Rotation
    from reattention_core.select.base import Reader, Selection


class ContextLayer(CacheLayerMixin):
    """One layer: un-rotated tail keys and values [B, G, n, D], over the layer's pages.

    Args:
        index: which layer of the model this is.
        pages: the corpus below the tail, or None.
        room: tokens the tail will have at most, or 0 where that is not known.

    Attributes:
        prefilled: tokens of the tail that stay unknown to transformers.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, index: int, pages: Pages | None, room: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index, self.pages = index, pages
        self.tail_keys, self.tail_values = Growing(room), Growing(room)
        self.prefilled = 0
        self._window: _Window | None = None

    @property
    def n_slots(self) -> int:
        """Addresses below this are the corpus's; address n_slots + i is token i of the tail."""
        return 0 if self.pages is None else self.pages.n_slots

    @property
    def n_tail(self) -> int:
        """Tokens of the private tail, the chunk being run included."""
        return self.tail_keys.n

    @property
    def nbytes(self) -> int:
        """Bytes of the tail and of its rotated window; the shared pages are not counted."""
        window = 0 if self._window is None else self._window.keys.nbytes + self._window.values.nbytes
        return self.tail_keys.nbytes + self.tail_values.nbytes + window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare: the first `update` allocates."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new un-rotated keys and values [B, G, Q, D]; returns just them, attention fetches the rest."""
        self.is_initialized = True
        self.tail_keys.append(key_states)
        self.tail_values.append(value_states)
        return key_states, value_states

    def gather(self, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values at rising addresses [n]: [B, G, n, D] each, in the tail's type."""
        keys, values = self.tail_keys.tokens, self.tail_values.tokens
        inside = addresses < self.n_slots
        own = addresses[~inside] - self.n_slots
        keys, values = keys[:, :, own], values[:, :, own]
        if self.pages is None:
            return keys, values
        page_keys, page_values = self.pages.gather(self.index, addresses[inside])
        rows = (keys.shape[0], -1, -1, -1)
        return (
            torch.cat([page_keys.to(keys).expand(rows), keys], 2),
            torch.cat([page_values.to(values).expand(rows), values], 2),
        )

    def gather_per_row(self, addresses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values at each row's own page addresses [B, n], then its tail: [B, G, n + tail, D] each.

        Negative addresses are padding and give whatever stands first.
        """
        assert self.pages is not None, "rows of their own are read from pages"
        keys, values = self.tail_keys.tokens, self.tail_values.tokens
        page_keys, page_values = self.pages.gather(self.index, addresses.clamp(min=0))
        return (
            torch.cat([page_keys.transpose(0, 1).to(keys), keys], 2),
            torch.cat([page_values.transpose(0, 1).to(values), values], 2),
        )

    def gather_per_head(self, addresses: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at each query head's own addresses [H, Q, n] (one row): [H, Q, n, D] each.

        Negative addresses are padding and give whatever stands first.
        """
        keys, values = self.tail_keys.tokens[0], self.tail_values.tokens[0]
        group = torch.arange(heads, device=keys.device)[:, None, None] // (heads // keys.shape[0])
        own = (addresses - self.n_slots).clamp(min=0)
        key, value = keys[group, own], values[group, own]
        if self.pages is not None:
            inside = (addresses < self.n_slots)[..., None]
            below = addresses.clamp(0, self.n_slots - 1)
            page_key, page_value = self.pages.gather_per_head(self.index, group, below)
            key = torch.where(inside, page_key.to(key), key)
            value = torch.where(inside, page_value.to(value), value)
        return key, value

    def window(self, selection: "Selection", rotation: "Rotation") -> tuple[torch.Tensor, torch.Tensor]:
        """Keys rotated at positions 0..W-1 and their values, [B, G, W, D]: the selection, then the tail.

        While a reader keeps answering with the same `Selection`, only the tail's new tokens are gathered and rotated.
        """
        begun = self._window is not None and self._window.selection is selection
        if self._window is None or not begun:
            self._window = _Window(selection)
        new = slice(self._window.tail_seen, None)
        keys, values = self.tail_keys.tokens[:, :, new], self.tail_values.tokens[:, :, new]
        if not begun and selection.addresses.numel():
            selected = self._whole_pages(selection) if selection.table is not None else self.gather(selection.addresses)
            keys, values = (torch.cat(both, 2) for both in zip(selected, (keys, values), strict=True))
            self._window.begin(keys, values, rotation)
        else:
            self._window.append(keys, values, rotation)
        self._window.tail_seen = self.n_tail
        return self._window.keys.tokens, self._window.values.tokens

    def _whole_pages(self, selection: "Selection") -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a selection of pages, [B, G, n, D] each: unlike `gather`, without waiting for the device."""
        assert self.pages is not None, "pages were selected where there are none"
        keys, values = self.tail_keys.tokens, self.tail_values.tokens
        page_keys, page_values = self.pages.gather(self.index, selection.addresses)
        rows = (keys.shape[0], -1, -1, -1)
        return page_keys.to(keys).expand(rows), page_values.to(values).expand(rows)

    def get_seq_length(self) -> int:
        """Tokens of the tail that `generate` knows of: not those that were read before it began."""
        return self.n_tail - self.prefilled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that a mask would have over the tail; no mask is ever built for this cache."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget the tail; the pages stay."""
        self.crop(-self.n_tail)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of the tail.

        Args:
            tokens_to_remove: how many, as a negative number (the convention of transformers 5).

        Raises:
            ValueError: the number is positive.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens to drop, got {tokens_to_remove}")
        self.tail_keys.crop(-tokens_to_remove)
        self.tail_values.crop(-tokens_to_remove)
        self._window = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep the tails of the surviving beams."""
        self.tail_keys.take_rows(beam_idx)
        self.tail_values.take_rows(beam_idx)
        self._window = None


class _Window:
    """A selection's keys, rotated once, with the tail appended as it grows."""

    def __init__(self, selection: "Selection") -> None:
        self.selection, self.tail_seen = selection, selection.tail_from
        self.keys, self.values = Growing(), Growing()

    def begin(self, keys: torch.Tensor, values: torch.Tensor, rotation: "Rotation") -> None:
        self.keys.hold(rotation(keys, 0))
        self.values.hold(values)

    def append(self, keys: torch.Tensor, values: torch.Tensor, rotation: "Rotation") -> None:
        self.keys.append(rotation(keys, self.keys.n))
        self.values.append(values)


class ContextCache(Cache):
    """The layers of one question: a private tail over the pages of a corpus, read as `reader` says.

    Args:
        n_layers: layers of the model.
        reader: decides at every layer and chunk what is seen.
        window: tokens the model was trained on; no window may be wider.
        pages: the corpus, or None for an ordinary prompt.
        room: tokens the tail will have at most, or 0 where that is not known.

    Attributes:
        widest: tokens of the widest window that attention has looked at so far.
        read: what attention read last.
        stepped: tokens written by recorded passes, whose keys and values lie elsewhere (`graphs`).
        held: what a recorded pass reads beside this cache and must not be freed before it; None for a pass that is run.
    """

    layers: list[ContextLayer]  # type: ignore[assignment]
    held: list[object] | None = None

    def __init__(self, n_layers: int, reader: "Reader", window: int, pages: Pages | None = None, room: int = 0) -> None:
        super().__init__(layers=[ContextLayer(index, pages, room) for index in range(n_layers)])
        self.reader, self.window, self.pages, self.room = reader, window, pages, room
        self.widest = self.stepped = 0
        self.read: Selection | None = None
        self._count: tuple[int, torch.Tensor] | None = None

    def count(self, layer: ContextLayer) -> torch.Tensor:
        """Tokens in a layer's tail as [1] int32 on its device; made once for all layers of a forward pass."""
        if self._count is None or self._count[0] != layer.n_tail:
            device = layer.tail_keys.storage.device
            self._count = layer.n_tail, torch.tensor([layer.n_tail], dtype=torch.int32, device=device)
        return self._count[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the tail that `generate` knows of."""
        return self.layers[layer_idx].get_seq_length() + self.stepped

    @property
    def nbytes(self) -> int:
        """Bytes of the private tail; the shared pages are not counted."""
        return sum(layer.nbytes for layer in self.layers)
