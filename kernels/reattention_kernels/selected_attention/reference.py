"""Attention over selected pages and a tail, in torch; knows neither documents nor how the pages were chosen.

The window of a key-value head is the filled slots of its table's pages, in the table's order, then the tail. Its tokens
stand at positions 0..W-1 without gaps (the re-assigned positions of ReAttention, arXiv 2407.15176).
"""

import torch

from reattention_kernels.rotation.reference import turned
from reattention_kernels.selected_attention.page_table import PageTable


def attend_selected(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    table: PageTable,
    tail_key: torch.Tensor,
    tail_value: torch.Tensor,
    n_tail: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    scaling: float,
    interleaved: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last Q tokens of the tail over selected pages and the tail; all un-rotated, rotated here.

    Computed in float32, or in float64 when the queries are; without a wait for the device.

    Args:
        query: [B, H, Q, D], un-rotated.
        key_pages: [G, P, T, D], un-rotated, for all rows of the batch; query head h reads key-value head h // (H // G).
        value_pages: [G, P, T, Dv].
        table: the selected pages and how many of their slots are filled, see `page_table`; no other slot is read.
        tail_key: [B, G, M, D], un-rotated; M is room, of which `n_tail` tokens count.
        tail_value: [B, G, M, Dv].
        n_tail: [1] int32, at least Q and at most M.
        cos: [positions, width / 2] of any floating type (a 16-bit one is read in half the time); the first `width` of D
            dimensions are rotated, none if it has no columns.
        sin: like `cos`.
        scaling: factor on q·k before the softmax.
        interleaved: dimensions 2i and 2i + 1 turn together; else i and i + width / 2 do.
        sliding_window: each query sees this many tokens at most, itself included.
        softcap: scores become softcap * tanh(scores / softcap), as in Gemma 2.
        sinks: [H] logits that take part in the softmax without a value, as in gpt-oss.

    Returns:
        [B, H, Q, Dv] in the type of `tail_value`; 0 where a query sees nothing.
    """
    batch, heads, rows, _ = query.shape
    groups, size, room = key_pages.shape[0], key_pages.shape[2], tail_key.shape[2]
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    device = query.device

    # Rows share their pages, [1, G, n], or have their own, [B, G, n].
    pages, starts = (part[(None,) * (3 - part.dim())].expand(-1, groups, -1).long() for part in table[:2])
    total = table.total.reshape(len(pages), -1).expand(-1, groups)
    slot, place = torch.arange(size, device=device), torch.arange(room, device=device)
    filled = torch.cat([starts, total[..., None]], 2).diff()
    there = (pages >= 0)[..., None] & (slot < filled[..., None])
    inside = torch.cat([there.flatten(2), (place < n_tail).expand(*pages.shape[:2], -1)], 2)
    position = torch.cat([(starts[..., None] + slot).flatten(2), total[..., None] + place], 2)
    own = total[..., None] + n_tail - rows + torch.arange(rows, device=device)

    def window(in_pages: torch.Tensor, in_tail: torch.Tensor) -> torch.Tensor:
        """[B, G, W, D] from [G, P, T, D] and [B, G, M, D]; zeros where there is no token, whatever lies there."""
        group = torch.arange(groups, device=device)[:, None]
        chosen = in_pages[group, pages.clamp(min=0)].flatten(2, 3).to(exact)
        tokens = torch.cat([chosen.expand(batch, -1, -1, -1), in_tail.to(exact)], 2)
        return tokens.masked_fill(~inside[..., None], 0.0)

    position = position.masked_fill(~inside, 0)
    key = _rotated(window(key_pages, tail_key), position, cos, sin, interleaved)
    grouped = query.to(exact).unflatten(1, (groups, -1))
    grouped = _rotated(grouped, own[:, :, None], cos, sin, interleaved)
    scores = grouped.flatten(2, 3) @ key.transpose(2, 3) * scaling
    scores = scores.unflatten(2, (-1, rows))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = inside[:, :, None] & (position[:, :, None] <= own[..., None])
    if sliding_window is not None:
        seen &= position[:, :, None] > own[..., None] - sliding_window
    scores = scores.masked_fill(~seen[:, :, None], float("-inf"))
    if sinks is not None:
        extra = sinks.to(exact).reshape(1, groups, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, extra], -1)
    # A query that sees nothing has NaN here.
    weights = scores.softmax(-1)[..., : position.shape[2]].masked_fill(~seen[:, :, None], 0.0)
    out = weights.flatten(2, 3) @ window(value_pages, tail_value)
    return out.reshape(batch, heads, rows, -1).to(tail_value.dtype)


def _rotated(
    x: torch.Tensor, position: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """Turn pairs of the first dimensions of x [..., D] by the angles of positions [...]."""
    return turned(x, cos[position].to(x), sin[position].to(x), interleaved)
