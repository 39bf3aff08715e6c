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
