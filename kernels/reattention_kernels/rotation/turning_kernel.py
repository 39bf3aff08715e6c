"""Rotary embeddings of a tile of tokens as they are loaded, in Triton; does not know whose tokens they are."""

import triton
import triton.language as tl

# a c - b s and a s + b c; a product is a sum with -0, since compute capability 8.0 multiplies bfloat16 in no other way.
_TURN = """{
    .reg .b32 zero, minus, part;
    mov.b32 zero, 0x80008000;
    neg.TYPE minus, $5;
    fma.rn.TYPE part, $3, minus, zero;
    fma.rn.TYPE $0, $2, $4, part;
    fma.rn.TYPE part, $2, $5, zero;
    fma.rn.TYPE $1, $3, $4, part;
}"""
TURN_BFLOAT16 = tl.constexpr(_TURN.replace("TYPE", "bf16x2"))
TURN_FLOAT16 = tl.constexpr(_TURN.replace("TYPE", "f16x2"))


@triton.jit
def loaded_pairs(
    token,
    position,
    on,
    cos,
    sin,
    stride,
    n_positions,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Both dimensions of all pairs of tokens [N] (pointers) and the angles of their positions [N]: [N, PAIRS] each."""
    if INTERLEAVED:
        # Loaded side by side, so that a load takes 16 bytes, and parted in registers.
        dim = tl.arange(0, 2 * PAIRS)[None, :]
        both = tl.load(token[:, None] + dim * stride, mask=on[:, None] & (dim < 2 * HALF), other=0.0)
        a, b = tl.split(tl.reshape(both, (token.shape[0], PAIRS, 2)))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        a = tl.load(token[:, None] + pair * stride, mask=on[:, None] & (pair < HALF), other=0.0)
        b = tl.load(token[:, None] + (pair + HALF) * stride, mask=on[:, None] & (pair < HALF), other=0.0)
    pair = tl.arange(0, PAIRS)[None, :]
    angle = position[:, None] * HALF + pair
    known = (on & (position < n_positions))[:, None] & (pair < HALF)
    c = tl.load(cos + angle, mask=known, other=0.0)
    s = tl.load(sin + angle, mask=known, other=0.0)
    return a, b, c, s


@triton.jit
def turned(
    token, position, on, cos, sin, stride, n_positions,
    HALF: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Both dimensions of all pairs of tokens [N] (pointers), turned at their positions [N]: [N, PAIRS] each."""
    a, b, c, s = loaded_pairs(token, position, on, cos, sin, stride, n_positions, HALF, PAIRS, INTERLEAVED)
    if PACKED and a.dtype == c.dtype and a.dtype.primitive_bitwidth == 16:
        return _turned_in_pairs(a, b, c, s)
    else:
        a, b, c, s = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), s.to(tl.float32)
        return a * c - b * s, b * c + a * s


@triton.jit
def _turned_in_pairs(a, b, c, s):
    """The same in the 16 bits that all have, two numbers an instruction; each product is rounded, as the stock model's are."""
    if a.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            TURN_BFLOAT16, "=&r,=&r,r,r,r,r", [a, b, c, s], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            TURN_FLOAT16, "=&r,=&r,r,r,r,r", [a, b, c, s], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
