"""The attention of an attached model: select, gather, rotate, attend; knows no rule and no model family.

Registered once with transformers' `AttentionInterface`. Every attached attention module carries a `Site` that says how
it rotates and which cache the running forward pass brought.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from reattention_core.cache.kv_cache import ContextCache, ContextLayer
from reattention_core.errors import ContextTooLongError
from reattention_core.positions import Rotation
from reattention_core.select.base import Selection
from reattention_kernels import attend, attend_selected, fused

NAME = "reattention"
"""The attention implementation's name in transformers."""

HARMLESS = ("position_ids", "cache_position")
"""Tensors that transformers passes to every attention and that say nothing new."""

FUSED_QUERIES = 256
"""A chunk of more queries is read through a gathered window, which torch's flash attention then reads once."""

QUERIES_AT_ONCE = 8
"""Queries that pick their own tokens are read this many at a time: each gathers a window of its own."""


@dataclass
class Site:
    """What one attention module needs to know while attached.

    Attributes:
        rotation: its rotary positions.
        sliding_window: tokens it sees by its own design, or None for all.
        scaling: its factor on q·k, seen at every call.
        query_shape: its (H, D), seen at every call.
        windowed: whether the model passed a sliding window, seen at every call.
        foreign: tensors that the model passed and this attention does not know.
        cache: the cache of the forward pass that is running.
    """

    rotation: Rotation
    sliding_window: int | None
    scaling: float = 0.0
    query_shape: tuple[int, int] = (0, 0)
    windowed: bool = False
    foreign: set[str] = field(default_factory=set)
    cache: ContextCache | None = field(default=None, repr=False)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over what the cache's reader selects; without a cache, ordinary causal attention.

    Args:
        module: an attached attention module.
        query: [B, H, Q, D], un-rotated; D of values may differ from D of keys.
        key: [B, G, Q, D], un-rotated, the new tokens only.
        value: [B, G, Q, D].
        attention_mask: not used, as no mask is built for us; rows may only be padded on the right, which causality hides.
        scaling: factor on q·k, 1 / sqrt(D) when left out.
        sliding_window: the layer's own width, where the model passes it.
        softcap: see `reattention_kernels.attend`.
        s_aux: attention sinks, see `reattention_kernels.attend`.
        kwargs: what transformers passes besides (dropout, flash-attention lengths); unused.

    Returns:
        [B, Q, H, D] and None for the weights, as transformers expects.

    Raises:
        ContextTooLongError: the window would be wider than the model was trained on.
    """
    site: Site = module._reattention  # type: ignore[assignment]
    site.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    site.query_shape, site.windowed = (query.shape[1], query.shape[3]), sliding_window is not None
    site.foreign.update(n for n, v in kwargs.items() if isinstance(v, torch.Tensor) and n not in HARMLESS)
    if attention_mask is not None:
        site.foreign.add("attention_mask")
    width = sliding_window or site.sliding_window
    options: dict[str, Any] = {"scaling": site.scaling, "softcap": softcap, "sinks": s_aux}
    if site.cache is None:
        out = attend(site.rotation(query, 0), site.rotation(key, 0), value, sliding_window=width, **options)
        return out.transpose(1, 2).contiguous(), None
    layer: ContextLayer = site.cache.layers[module.layer_idx]  # type: ignore[index]
    reader = site.cache.reader
    if layer.pages is not None:
        layer.pages.arrive(layer.index)
    if width:
        # A window as wide as the trained one, and a chunk behind it, would reach beyond.
        near = max(1, min(width, site.cache.window + 1 - query.shape[2]))
        selection = reader.select_local(layer, query, near)
    else:
        selection = reader.select(layer, query)
    site.cache.read = selection
    fused_out = _attend_fused(query, layer, selection, site, width, options)
    if fused_out is not None:
        out = fused_out
    elif site.cache.held is not None:
        raise RuntimeError(
            "a window that is gathered grows in Python's hands, so a recorded pass would read an old one"
        )
    elif selection.addresses.dim() == 1:
        keys, values = layer.window(selection, site.rotation)
        _check(keys.shape[2], site.cache)
        query = site.rotation(query, keys.shape[2] - query.shape[2])
        out = attend(query, keys, values, sliding_window=width, **options)
    elif selection.addresses.dim() == 2:
        out = _attend_per_row(query, layer, selection.addresses, site, width, options)
    else:
        _check(selection.addresses.shape[2], site.cache)
        out = _attend_per_query(query, layer, selection.addresses, site.rotation, options)
    return out.transpose(1, 2).contiguous(), None


def _attend_fused(
    query: torch.Tensor,
    layer: ContextLayer,
    selection: Selection,
    site: Site,
    width: int | None,
    options: dict[str, Any],
) -> torch.Tensor | None:
    """Attention over whole pages and the tail where they lie, [B, H, Q, D]; None where the window must be gathered.

    That is on a CPU, for a long chunk, for single tokens of pages, and for rotations that the kernel does not know.
    """
    cache, table = site.cache, selection.table
    if cache is None or table is None or layer.pages is None or selection.tail_from or query.shape[2] > FUSED_QUERIES:
        return None
    if layer.pages.below is not None:
        return None
    pages, keys = layer.pages, layer.tail_keys.storage
    if pages.keys[layer.index].dtype != query.dtype or not fused(query.device):
        return None
    n = selection.addresses.shape[-1] + layer.n_tail
    _check(n, cache)
    angles = site.rotation.angles(query, n)
    if angles is None:
        return None
    if cache.held is not None:
        cache.held.append(angles)
    return attend_selected(
        query,
        pages.keys[layer.index],
        pages.values[layer.index],
        table,
        keys,
        layer.tail_values.storage,
        cache.count(layer),
        angles.cos,
        angles.sin,
        interleaved=angles.interleaved,
        sliding_window=width,
        **options,
    )


def _attend_per_row(
    query: torch.Tensor,
    layer: ContextLayer,
    addresses: torch.Tensor,
    site: Site,
    width: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Each row of a batch reads its own window [B, n] before its tail: [B, H, Q, D]."""
    keys, values = layer.gather_per_row(addresses)
    if site.cache is not None:
        _check(keys.shape[2], site.cache)
    # Padding stands in front and shifts a row's positions alike, which changes nothing under rotary embeddings.
    hidden = torch.nn.functional.pad(addresses < 0, (0, layer.n_tail))[:, None, None]
    start = keys.shape[2] - query.shape[2]
    return attend(
        site.rotation(query, start), site.rotation(keys, 0), values, hidden=hidden, sliding_window=width, **options
    )


def _attend_per_query(
    query: torch.Tensor,
    layer: ContextLayer,
    addresses: torch.Tensor,
    rotation: Rotation,
    options: dict[str, Any],
) -> torch.Tensor:
    """Each head and query reads its own window [H, Q, n], of which it is the last token; one row: [1, H, Q, D]."""
    n, out = addresses.shape[2], []
    for start in range(0, query.shape[2], QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        own = addresses[:, part]
        keys, values = layer.gather_per_head(own, query.shape[1])
        # Queries become rows of a batch. Padding stands in front: shifting all positions of a window alike changes
        # nothing under rotary embeddings, so every query can stand at n - 1.
        one = query[0, :, part].transpose(0, 1).unsqueeze(2)
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        hidden = (own < 0).transpose(0, 1).unsqueeze(2)
        out.append(attend(rotation(one, n - 1), rotation(keys, 0), values, hidden=hidden, **options))
    return torch.cat(out).squeeze(2).transpose(0, 1)[None]


def _check(width: int, cache: ContextCache) -> None:
    """Positions run from 0 to width - 1: none may reach the trained window."""
    cache.widest = max(cache.widest, width)
    if width > cache.window:
        raise ContextTooLongError(
            f"attention would look at {width} tokens at once, but the model was trained on {cache.window}: "
            "select less (fewer pages, a smaller local part) or ask a shorter question",
            n_tokens=width,
            limit=cache.window,
        )
