"""Ordinary causal attention of the last rows of a window, in torch; knows nothing of how the window came to be."""

from functools import lru_cache

import torch
import torch.nn.functional as F

FEW = 8
"""Keys before the queries are few where there are at least so many times as many queries."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    hidden: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of Q queries, which are the window's last Q tokens, over W keys.

    Args:
        query: [B, H, Q, D], rotated.
        key: [B, G, W, D], rotated; query head h reads key head h // (H // G).
        value: [B, G, W, D].
        scaling: factor on q·k before the softmax.
        hidden: [B or 1, H or 1, 1, W] bool, keys that no query may see; every earlier key is seen when left out.
        sliding_window: each query sees this many keys at most, itself included.
        softcap: scores become softcap * tanh(scores / softcap), as in Gemma 2.
        sinks: [H] logits that take part in the softmax without a value, as in gpt-oss.

    Returns:
        [B, H, Q, D] in the type of `value`.
    """
    rows, width = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    plain = softcap is None and sinks is None
    reach = width if sliding_window is None else min(sliding_window, width)
    causal = plain and hidden is None and reach == width
    if causal and (rows == width or rows == 1):
        return F.scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=rows > 1, enable_gqa=grouped)
    if causal and query.is_cuda:
        # No mask in memory, so that flash attention can take it. Imported here, as it brings torch's compiler along.
        from torch.nn.attention.bias import causal_lower_right

        bias = causal_lower_right(rows, width)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=grouped)
    if causal and (width - rows) * FEW <= rows:
        # With a mask torch scores what no query sees as well: cheaper to let the few earlier keys ask for themselves.
        every = F.pad(query, (0, 0, width - rows, 0))
        out = F.scaled_dot_product_attention(every, key, value, scale=scaling, is_causal=True, enable_gqa=grouped)
        return out[:, :, width - rows :]
    mask = _causal(rows, width, reach, query.dtype, query.device)
    if hidden is not None:
        mask = mask.masked_fill(hidden, float("-inf"))
    if plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    repeats = query.shape[1] // key.shape[1]
    scores = query.float() @ key.float().repeat_interleave(repeats, 1).transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        extra = sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, rows, 1)
        weights = torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights.to(value.dtype) @ value.repeat_interleave(repeats, 1)


@lru_cache(maxsize=2)
def _causal(rows: int, width: int, reach: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What the last `rows` of `width` tokens may see, 0, and may not, -inf: [rows, width].

    Kept for the next layers, which ask for the same one: making it anew took a tenth of an ingest.
    """
    with torch.inference_mode(False):  # a pass with gradients may be the next to use it
        own = torch.arange(width - rows, width, device=device)[:, None]
        other = torch.arange(width, device=device)
        seen = (other <= own) & (own - other < reach)
        return torch.zeros(rows, width, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
