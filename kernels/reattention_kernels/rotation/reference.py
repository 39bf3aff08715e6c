"""Rotary embeddings of tokens that stand one behind another, in torch; knows no model and no cache."""

import torch


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, start: int = 0, *, interleaved: bool = False
) -> torch.Tensor:
    """Turn pairs of dimensions of tokens that stand at positions start..start+n-1 (RoPE, arXiv 2104.09864).

    Rounds as transformers' models do: every product and every sum, to the type that `x` and the angles promote to.

    Args:
        x: [B, H, n, D].
        cos: [positions, width / 2], at least start + n positions; the first `width` of D dimensions are turned.
        sin: like `cos`.
        start: the first token's position.
        interleaved: dimensions 2i and 2i + 1 turn together; else i and i + width / 2 do.

    Returns:
        [B, H, n, D] in the type of `x`.
    """
    here = slice(start, start + x.shape[2])
    return turned(x, cos[here], sin[here], interleaved).to(x.dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Pairs of the first dimensions of x [..., D] turned by angles [..., width / 2], in the type that both promote to."""
    half = cos.shape[-1]
    if half == 0:
        return x
    pairs, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = pairs.unflatten(-1, (half, 2)).unbind(-1) if interleaved else pairs.chunk(2, -1)
    both = (first * cos - second * sin, second * cos + first * sin)
    pairs = torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)
    return torch.cat([pairs, rest.to(pairs)], -1) if rest.shape[-1] else pairs
