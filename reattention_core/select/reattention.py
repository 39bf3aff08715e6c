"""ReAttention as published: per layer, the keys most voted for by all heads and queries of a chunk; knows no documents.

Source: arXiv 2407.15176 and the authors' released cache code (MIT). The window of a chunk is

    [ global: the first tokens | selected: spans around the most-voted keys | local: the newest tokens, the chunk included ]

Every query of every head votes for its `top_k` keys of the middle by un-rotated q·k. The votes of the whole layer are
united, the `recall_clip` most-voted keys are kept and each grows to a span of `span` tokens around it.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import PAGE
from reattention_core.errors import InvalidConfigError
from reattention_core.select.base import Context, Reader, Selection, Selector
from reattention_core.select.fixed import Everything
from reattention_kernels import most_voted, select_topk


class ReAttention(Selector):
    """The published rule; defaults are the authors' for a model trained on 8,192 tokens (LLaMA3-8B).

    Attributes:
        global_size: first tokens of the sequence, always seen.
        top_k: keys each query of each head votes for.
        span: tokens around a kept key that are seen, half of them before it.
        local_size: newest tokens, always seen, the chunk being read included.
        chunk_size: tokens of a prompt read at a time.
        recall_clip: most-voted keys kept per layer and chunk.
    """

    name = "reattention"

    global_size: int = Field(default=32, ge=0)
    top_k: int = Field(default=4, ge=1)
    span: int = Field(default=32, ge=1)
    local_size: int = Field(default=4096, ge=1)
    chunk_size: int = Field(default=512, ge=1)
    recall_clip: int = Field(default=96, ge=1)

    @classmethod
    def for_window(cls, window: int) -> Self:
        """The published parameters, shrunk in proportion where the model's window is smaller than they need."""
        if window >= cls().widest:
            return cls()
        local = window // 2
        middle = local * 3 // 4
        span = 32 if middle >= 32 else max(1, local // 2)
        return cls(
            global_size=min(32, window // 8),
            span=span,
            local_size=local,
            chunk_size=max(1, local // 8),
            recall_clip=max(1, middle // span),
        )

    @property
    def widest(self) -> int:
        """The most tokens a window can hold under this rule."""
        return self.global_size + self.recall_clip * self.span + self.local_size

    def reader(self, context: Context) -> Reader:
        """A reader for one request.

        Raises:
            InvalidConfigError: the parameters make a window wider than the model was trained on.
        """
        if self.widest > context.window:
            raise InvalidConfigError(
                f"reattention would look at {self.widest} tokens (global_size + recall_clip * span + local_size), the model was "
                f"trained on {context.window}: lower local_size or recall_clip, or use ReAttention.for_window({context.window})"
            )
        if self.chunk_size > self.local_size:
            raise InvalidConfigError(
                f"chunk_size must be at most local_size ({self.local_size}), got {self.chunk_size}"
            )
        return ReAttentionReader(self)


class ReAttentionReader(Reader):
    """One request under the published rule.

    Args:
        rule: its parameters.
    """

    def __init__(self, rule: ReAttention) -> None:
        self.rule, self._everything = rule, Everything()
        self.chunk = rule.chunk_size
        # What a chunk sees depends on all of its queries, so that chunks are taken over whole.
        self.way, self.step = repr(rule), math.lcm(rule.chunk_size, PAGE)

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """What a chunk sees in a layer; arguments as `Reader.select` has them."""
        rule, device = self.rule, query.device
        tail = layer.n_slots + torch.arange(layer.n_tail, device=device)
        sequence = tail if layer.pages is None else torch.cat([layer.pages.addresses, tail])
        first, last = rule.global_size, len(sequence) - rule.local_size
        if last <= first:
            return self._everything.select(layer, query)
        scores, addresses = self._candidates(layer, query, sequence[first:last])
        ranks = torch.where(addresses >= 0, torch.searchsorted(sequence, addresses), -1)
        kept, votes = self.elect(layer, scores, ranks, len(sequence))
        self._remember(layer, sequence[kept[kept >= 0]], votes[kept >= 0])
        tail_from = max(0, layer.n_tail - rule.local_size)
        windows = []
        for centres in kept:
            spans = centres[centres >= 0, None] + torch.arange(rule.span, device=device) - rule.span // 2
            spans = spans[(spans >= first) & (spans < last)].unique()
            window = torch.cat([sequence[:first], sequence[spans], sequence[last:]])
            windows.append(window[window < layer.n_slots + tail_from])
        return self.see(layer, query, windows, tail_from)

    def _candidates(
        self, layer: ContextLayer, query: torch.Tensor, middle: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of every query's best keys among the addresses `middle`, [1, H, Q, k], and their addresses, -1 for none."""
        found = []
        if layer.pages is not None:
            keys = layer.pages.scan(layer.index).flatten(1, 2)
            found.append((keys[None], 0))
        found.append((layer.tail_keys.tokens, layer.n_slots))
        scores, addresses = [], []
        for keys, offset in found:
            inside = middle[(middle >= offset) & (middle < offset + keys.shape[2])] - offset
            if len(inside):
                score, index = self.best(query, keys, inside)
                scores.append(score)
                addresses.append(torch.where(index >= 0, index + offset, -1))
        top = torch.cat(scores, -1).sort(dim=-1, descending=True, stable=True)
        order = top.indices[..., : self.rule.top_k]
        return top.values[..., : self.rule.top_k], torch.cat(addresses, -1).gather(-1, order)

    def best(self, query: torch.Tensor, keys: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys that each query of each head votes for.

        Args:
            query: [1, H, Q, D], un-rotated.
            keys: [1, G, N, D], un-rotated.
            inside: [n] int64, which of them may be chosen, rising.

        Returns:
            Scores [1, H, Q, k] float32, falling, and numbers of keys [1, H, Q, k] int64; -inf and -1 where there are fewer.
        """
        allowed = torch.zeros(keys.shape[2], dtype=torch.bool, device=query.device)
        allowed[inside] = True
        return select_topk(query, keys, self.rule.top_k, allowed)

    def elect(
        self, layer: ContextLayer, scores: torch.Tensor, ranks: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys that are kept of all that were voted for.

        Args:
            layer: whose keys they are.
            scores: [1, H, Q, k] float32 of the votes.
            ranks: [1, H, Q, k] int64, the place of each voted key in the sequence; -1 is no vote.
            n: tokens of the sequence.

        Returns:
            Places [S, recall_clip] int64 of S windows, here 1 for the whole layer, filled up with -1, and the votes of each.
        """
        return most_voted(ranks.reshape(1, -1), n, self.rule.recall_clip)

    def see(
        self, layer: ContextLayer, query: torch.Tensor, windows: Sequence[torch.Tensor], tail_from: int
    ) -> Selection:
        """What the chunk may see: the windows, each [n] addresses below the tail's `tail_from`, and the tail from there on."""
        return Selection(windows[0], tail_from)

    def _remember(self, layer: ContextLayer, addresses: torch.Tensor, votes: torch.Tensor) -> None:
        """Count the votes of each page as evidence."""
        if layer.pages is None:
            return
        if self.evidence is None:
            self.evidence = torch.zeros(layer.pages.n_pages, device=votes.device)
        inside = addresses < layer.n_slots
        self.evidence.index_add_(0, addresses[inside] // PAGE, votes[inside].float())
