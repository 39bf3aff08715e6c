"""New keys and values into pages, one launch for a batch; knows what the reference knows.

Each program moves one page of one key-value head: it holds the page in registers, so the page's scale and codes come
from the same read.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.key_index import KeyIndex
from reattention_kernels.launch import INTERPRETED, next_power


@triton.jit
def _write_kernel(
    key_pages, value_pages, key, value, starts, lengths, codes, scale,
    key_pages_g, key_pages_p, key_pages_t, key_pages_d, value_pages_g, value_pages_p, value_pages_t, value_pages_d,
    key_b, key_g, key_n, key_d, value_b, value_g, value_n, value_d, codes_g, codes_p, codes_t, codes_d,
    scale_g, scale_p,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, VALUE_DIM: tl.constexpr,
    VALUES: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Page `program_id(0)` of row `program_id(2)` for key-value head `program_id(1)`."""
    first = tl.program_id(0) * SIZE
    group, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + batch)
    if first >= length:
        return
    page = tl.load(starts + batch) // SIZE + tl.program_id(0)
    slot = tl.arange(0, SLOTS)[:, None]
    token = (first + slot).to(tl.int64)
    there = (slot < SIZE) & (token < length)

    dim = tl.arange(0, DIMS)[None, :]
    on = there & (dim < DIM)
    new = tl.load(key + batch * key_b + group * key_g + token * key_n + dim * key_d, mask=on, other=0.0)
    new = new.to(key_pages.dtype.element_ty)
    tl.store(
        key_pages + group * key_pages_g + page * key_pages_p + slot * key_pages_t + dim * key_pages_d, new, mask=on
    )

    value_dim = tl.arange(0, VALUES)[None, :]
    on = there & (value_dim < VALUE_DIM)
    moved = tl.load(value + batch * value_b + group * value_g + token * value_n + value_dim * value_d, mask=on)
    at = value_pages + group * value_pages_g + page * value_pages_p + slot * value_pages_t + value_dim * value_pages_d
    tl.store(at, moved.to(value_pages.dtype.element_ty), mask=on)

    if codes is not None:
        stored = new.to(tl.float32)
        step = tl.max(tl.max(tl.abs(stored), 1), 0) * (1.0 / LARGEST)
        step = tl.where(step == 0, 1.0, step)
        scaled = tl.div_rn(stored, step)
        if codes.dtype.element_ty == tl.int8:
            scaled = tl.floor(scaled + 0.5)
        at = codes + group * codes_g + page * codes_p + slot * codes_t + dim * codes_d
        tl.store(at, scaled.to(codes.dtype.element_ty), mask=(slot < SIZE) & (dim < DIM))
        tl.store(scale + group * scale_g + page * scale_p, step)


def write_pages(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    index: KeyIndex | None = None,
) -> None:
    """Store each row's tokens from its first page on; see the reference for each argument and the rounding.

    One launch, without a wait for the device. float8 codes need a GPU of compute capability 8.9 or more.
    """
    rows, groups, n, dim = key.shape
    size, values = key_pages.shape[2], value.shape[3]
    if rows == 0 or n == 0:
        return
    if INTERPRETED:  # it cuts bfloat16 off instead of rounding it
        key, value = key.to(key_pages.dtype), value.to(value_pages.dtype)
    codes, scale = (None, None) if index is None else index
    whole = codes is None or codes.dtype == torch.int8
    with torch.cuda.device_of(key):
        _write_kernel[(triton.cdiv(n, size), groups, rows)](
            key_pages, value_pages, key, value, starts, lengths, codes, scale,
            *key_pages.stride(), *value_pages.stride(), *key.stride(), *value.stride(),
            *((0,) * 4 if codes is None else codes.stride()), *((0,) * 2 if scale is None else scale.stride()),
            SIZE=size, SLOTS=next_power(size), DIM=dim, DIMS=next_power(dim),
            VALUE_DIM=values, VALUES=next_power(values), LARGEST=127.0 if whole else 448.0,
            num_warps=4,
        )  # fmt: skip
