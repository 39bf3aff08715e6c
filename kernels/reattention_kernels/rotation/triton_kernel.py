"""Rotary embeddings of tokens that stand one behind another, in Triton; knows what the reference knows.

The models' own code takes five launches to turn a tensor, each of which reads and writes all of it; this is one, with the
same bits: products are rounded before they are added.
"""

import torch
import triton
import triton.language as tl

from reattention_kernels.launch import next_power
from reattention_kernels.rotation.turning_kernel import loaded_pairs

TOKENS = 32
"""Tokens of a head that one program turns."""
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _rotate_kernel(
    x, cos, sin, out, n, start,
    x_row, x_head, x_token, x_dim, out_row, out_head, out_token, out_dim,
    DIM: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    TOKENS: tl.constexpr, BETWEEN: tl.constexpr,
):  # fmt: skip
    """BETWEEN: the type that torch would promote to, which it rounds every product and sum to."""
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    on = token < n
    given = x + row * x_row + head * x_head + token.to(tl.int64) * x_token
    written = (out + row * out_row + head * out_head + token.to(tl.int64) * out_token)[:, None]
    a, b, c, s = loaded_pairs(given, start + token, on, cos, sin, x_dim, start + n, HALF, PAIRS, INTERLEAVED)
    first = (_product(a, c, BETWEEN) - _product(b, s, BETWEEN)).to(BETWEEN)
    second = (_product(b, c, BETWEEN) + _product(a, s, BETWEEN)).to(BETWEEN)
    KEPT: tl.constexpr = out.dtype.element_ty
    if INTERLEAVED:
        dim = tl.arange(0, 2 * PAIRS)[None, :]
        both = tl.reshape(tl.join(first, second), (TOKENS, 2 * PAIRS)).to(KEPT)
        tl.store(written + dim * out_dim, both, mask=on[:, None] & (dim < 2 * HALF))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        inside = on[:, None] & (pair < HALF)
        tl.store(written + pair * out_dim, first.to(KEPT), mask=inside)
        tl.store(written + (pair + HALF) * out_dim, second.to(KEPT), mask=inside)
    if REST > 0:
        dim = 2 * HALF + tl.arange(0, REST)[None, :]
        inside = on[:, None] & (dim < DIM)
        tl.store(written + dim * out_dim, tl.load(given[:, None] + dim * x_dim, mask=inside), mask=inside)


@triton.jit
def _product(x, y, BETWEEN: tl.constexpr):
    """In float32, but rounded to a type."""
    return (x.to(tl.float32) * y.to(tl.float32)).to(BETWEEN).to(tl.float32)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, start: int = 0, *, interleaved: bool = False
) -> torch.Tensor:
    """The operation of `rotation.reference.rotate`, on a GPU; no type may be wider than float32."""
    rows, heads, n, dim = x.shape
    half, between = cos.shape[-1], torch.promote_types(x.dtype, cos.dtype)
    if between == torch.float64:
        raise NotImplementedError("the kernel has no float64")
    # Laid out as `x` is: torch's attention then leaves its result as the model goes on with it.
    out = torch.empty_like(x)
    if half == 0 or not x.numel():
        return out.copy_(x)
    rest, cos, sin = dim - 2 * half, cos.contiguous(), sin.contiguous()
    with torch.cuda.device_of(x):
        _rotate_kernel[(triton.cdiv(n, TOKENS), heads, rows)](
            x, cos, sin, out, n, start, *x.stride(), *out.stride(),
            DIM=dim, HALF=half, PAIRS=next_power(half), REST=next_power(rest) if rest else 0, INTERLEAVED=interleaved,
            TOKENS=TOKENS, BETWEEN=_TYPES[between], num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
