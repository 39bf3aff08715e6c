"""ReAttention with votes that are found, weighed and counted otherwise than published."""

from collections.abc import Sequence
from typing import Literal

import torch

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.select import Context, ReAttention, Selection
from reattention_core.select.reattention import ReAttentionReader
from reattention_kernels import most_voted, one_per_block


class Votes(ReAttention):
    """With its defaults, the published rule.

    Attributes:
        by: whether each vote counts 1, or its part of the softmax over the keys that its query votes for.
        per: whether all heads of a layer elect one window, or those of each key-value head one of their own.
        exact: whether a query votes for its best keys, or for the best of at most one in each block of 128 keys, as the authors'
            released kernel finds them.
    """

    name = "votes"

    by: Literal["count", "mass"] = "count"
    per: Literal["layer", "kv_head"] = "layer"
    exact: bool = True

    def reader(self, context: Context) -> "VotesReader":
        """As `ReAttention.reader`."""
        super().reader(context)
        return VotesReader(self, context.scaling)


class VotesReader(ReAttentionReader):
    """One request under the rule.

    Args:
        rule: its parameters.
        scaling: each layer's factor on q·k.
    """

    def __init__(self, rule: Votes, scaling: Sequence[float]) -> None:
        super().__init__(rule)
        self._votes, self._scaling = rule, scaling

    def best(self, query: torch.Tensor, keys: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ReAttentionReader.best`, one in a block where that is asked."""
        if self._votes.exact:
            return super().best(query, keys, inside)
        scores, found = one_per_block(query.to(keys.dtype), keys[:, :, inside].contiguous(), self.rule.top_k)
        return scores, torch.where(found >= 0, inside[found.clamp(min=0)], -1)

    def elect(
        self, layer: ContextLayer, scores: torch.Tensor, ranks: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ReAttentionReader.elect`, for one window or for one of each key-value head."""
        sets = layer.tail_keys.tokens.shape[1] if self._votes.per == "kv_head" else 1
        weight = None
        if self._votes.by == "mass":
            weight = (scores * self._scaling[layer.index]).softmax(-1).nan_to_num().reshape(sets, -1)
        return most_voted(ranks.reshape(sets, -1), n, self.rule.recall_clip, weight)

    def see(
        self, layer: ContextLayer, query: torch.Tensor, windows: Sequence[torch.Tensor], tail_from: int
    ) -> Selection:
        """As `ReAttentionReader.see`; with several windows every head has its own, up to each query."""
        if len(windows) == 1:
            return super().see(layer, query, windows, tail_from)
        heads, rows, device = query.shape[1], query.shape[2], query.device
        tail = layer.n_slots + torch.arange(tail_from, layer.n_tail, device=device)
        widest = max(len(window) for window in windows)
        below = torch.stack(
            [torch.nn.functional.pad(window, (widest - len(window), 0), value=-1) for window in windows]
        )
        seen = torch.cat([below, tail.expand(len(windows), -1)], 1).repeat_interleave(heads // len(windows), 0)
        seen = seen[:, None].expand(-1, rows, -1)
        own = layer.n_slots + torch.arange(layer.n_tail - rows, layer.n_tail, device=device)
        seen = seen.masked_fill(seen > own[:, None], -1)
        # Right-aligned: what a query may not see yet goes to the front.
        return Selection(seen.gather(-1, (seen >= 0).to(torch.uint8).sort(dim=-1, stable=True).indices))
