"""New keys and values into pages, in torch; knows neither documents nor which pages are free."""

import torch

from reattention_kernels.key_index import KeyIndex


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

    Slots of `key_pages` and `value_pages` that get no token stay as they are. A page's scale is its largest absolute
    key, as stored, over the largest code (127, or 448 for float8_e4m3fn); a page of zeros has scale 1. Integer codes
    are rounded to the nearest, halves up, and slots of a written page that get no token have code 0.

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
            _index(index, pages, stored.masked_fill(place >= length, 0.0))


def _index(index: KeyIndex, pages: slice, key: torch.Tensor) -> None:
    """Quantise the keys [G, p, T, D] of some pages, zeros where there is no token."""
    codes, scale = index
    whole = codes.dtype == torch.int8
    largest = 127.0 if whole else torch.finfo(codes.dtype).max
    # A product: torch divides by a number differently on CUDA and on the CPU.
    step = key.abs().amax((2, 3)) * (1.0 / largest)
    step = step.masked_fill(step == 0, 1.0)
    scaled = key / step[..., None, None]
    codes[:, pages] = (torch.floor(scaled + 0.5) if whole else scaled).to(codes.dtype)
    scale[:, pages] = step
