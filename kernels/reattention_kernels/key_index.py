"""Keys in 8 bits, one scale a page: half the bytes to read when keys are only scored; knows no operation."""

from typing import NamedTuple

import torch


class KeyIndex(NamedTuple):
    """An 8-bit copy of a layer's un-rotated keys; key = codes * scale, approximately.

    Attributes:
        codes: [G, P, T, D] int8, or float8_e4m3fn.
        scale: [G, P] float32, one for each page of each key-value head.
    """

    codes: torch.Tensor
    scale: torch.Tensor


def indexed(key: torch.Tensor, dtype: torch.dtype = torch.int8) -> KeyIndex:
    """The 8-bit copy of keys.

    A page's scale is its largest absolute key over the largest code (127, or 448 for float8_e4m3fn); a page of zeros has
    scale 1. Integer codes are rounded to the nearest, halves up.

    Args:
        key: [G, P, T, D], zeros where there is no token.
        dtype: of the codes.
    """
    whole, key = dtype == torch.int8, key.float()
    largest = 127.0 if whole else torch.finfo(dtype).max
    # A product: torch divides by a number differently on CUDA and on the CPU.
    step = key.abs().amax((2, 3)) * (1.0 / largest)
    step = step.masked_fill(step == 0, 1.0)
    scaled = key / step[..., None, None]
    return KeyIndex((torch.floor(scaled + 0.5) if whole else scaled).to(dtype), step)
