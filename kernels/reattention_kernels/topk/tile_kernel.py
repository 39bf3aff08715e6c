"""The largest 8-bit scores of blocks of keys, out of a tile that is in registers, in Triton; does not know where keys lie.

Of eight keys in a row the tensor cores leave two to each of four threads. A thread's own scores come first, then its pages', each
times its page's scale, and only then what the four have: an exchange for each page would cost as much as all the maxima.
"""

import triton
import triton.language as tl


@triton.jit
def of_blocks_by_page(
    scores, factor,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SUB: tl.constexpr, PAGE: tl.constexpr,
    HIDING: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Maxima of blocks [HEIGHT, WIDTH // SUB] float32 of whole or float32 scores [HEIGHT, WIDTH], of which LOWEST is hidden.

    `factor` [WIDTH // PAGE] float32 are the scales of the tile's pages.
    """
    parted = tl.permute(tl.reshape(scores, (HEIGHT, WIDTH // PAGE, PAGE // 8, 4, 2)), (0, 1, 3, 2, 4))
    of_page = tl.max(tl.reshape(parted, (HEIGHT, WIDTH // PAGE, 4, PAGE // 4)), 3)
    scaled = _in_float32(of_page) * factor[None, :, None]
    if HIDING:
        scaled = tl.where(of_page == LOWEST, float("-inf"), scaled)
    return tl.max(tl.max(tl.reshape(scaled, (HEIGHT, WIDTH // SUB, SUB // PAGE, 4)), 2), 2)


@triton.jit
def of_blocks_in_pairs(
    scores, factor, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SUB: tl.constexpr, PAGE: tl.constexpr
):
    """The same of scores in half precision, two an instruction; `factor` times a score must stay within half precision."""
    # PAGE is 32: four times eight keys.
    parted = tl.reshape(scores, (HEIGHT, WIDTH // PAGE, 2, 2, 4, 2))
    first, second = tl.split(tl.permute(parted, (0, 1, 4, 5, 3, 2)))
    first, second = tl.split(_larger(first, second))
    of_page = _scaled(_larger(first, second), factor[None, :, None, None].to(tl.float16))
    of_block = _largest(tl.reshape(of_page, (HEIGHT, WIDTH // SUB, SUB // PAGE, 4, 2)), SUB // PAGE)
    return tl.max(tl.reshape(of_block.to(tl.float32), (HEIGHT, WIDTH // SUB, 8)), 2)


@triton.jit
def _in_float32(x):
    """Scores as float32; whole ones, below 2 ** 22, by two additions instead of the conversion that takes eight times as long."""
    if x.dtype == tl.int32:
        return (x + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    else:
        return x


@triton.jit
def _larger(a, b):
    """The larger of each two numbers in half precision, two pairs an instruction."""
    return tl.inline_asm_elementwise("max.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit
def _scaled(a, factor):
    """Numbers in half precision times a factor, two an instruction."""
    factor, a = tl.broadcast(factor, a)
    return tl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, factor], dtype=tl.float16, is_pure=True, pack=2
    )


@triton.jit
def _largest(x, N: tl.constexpr):
    """The largest over the third dimension, of 1, 2 or 4 numbers."""
    if N == 4:
        parted = tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, x.shape[3], x.shape[4]))
        first, second = tl.split(tl.permute(parted, (0, 1, 2, 4, 5, 3)))
        x = _larger(first, second)
    if N > 1:
        first, second = tl.split(tl.permute(x, (0, 1, 3, 4, 2)))
        return _larger(first, second)
    else:
        return tl.reshape(x, (x.shape[0], x.shape[1], x.shape[3], x.shape[4]))
