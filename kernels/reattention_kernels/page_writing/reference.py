"""New keys and values into pages, in torch; knows neither documents nor which pages are free."""

import torch

from reattention_kernels.key_index import KeyIndex, indexed


def write_pages(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    index: KeyIndex | None = None,
) -> None:
    """Store each row's tokens from its first page on, in the pages' type, and the keys' 8-bit copy beside them.

    Slots of `key_pages` and `value_pages` that get no token stay as they are. The copy is that of the keys as stored (see
    `indexed`), and slots of a written page that get no token have code 0.

    Args:
        key_pages: [G, P, T, D], written in place.
        value_pages: [G, P, T, Dv], written in place.
        key: [B, G, n, D], un-rotated.
        value: [B, G, n, Dv].
        starts: [B] int64, address (page * T) of each row's first token; no two rows may share a page.
        lengths: [B] int64, how many of a row's n tokens count; the others are padding.
        index: where the 8-bit copy of the keys goes, or None for no copy.
    """
    size = key_pages.shape[2]
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if length == 0:
            continue
        key_pages.flatten(1, 2)[:, start : start + length] = key[row, :, :length].to(key_pages.dtype)
        value_pages.flatten(1, 2)[:, start : start + length] = value[row, :, :length].to(value_pages.dtype)
        if index is not None:
            pages = slice(start // size, (start + length - 1) // size + 1)
            stored = key_pages[:, pages].float()
            place = torch.arange(stored.shape[1] * size, device=stored.device).view(1, -1, size, 1)
            codes, scale = indexed(stored.masked_fill(place >= length, 0.0), index.codes.dtype)
            index.codes[:, pages], index.scale[:, pages] = codes, scale
