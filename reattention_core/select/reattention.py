"""ReAttention as published: per layer, the keys most voted for by all heads and queries of a chunk; knows no documents.

Source: arXiv 2407.15176 and the authors' released cache code (MIT). The window of a chunk is

    [ global: the first tokens | selected: spans around the most-voted keys | local: the newest tokens, the chunk included ]

Every query of every head votes for its `top_k` keys of the middle by un-rotated q·k. The votes of the whole layer are
united, the `recall_clip` most-voted keys are kept and each grows to a span of `span` tokens around it.
"""

import math
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
        return _Reader(self)


class _Reader(Reader):
    def __init__(self, rule: ReAttention) -> None:
        self._rule, self._everything = rule, Everything()
        self.chunk = rule.chunk_size
        # What a chunk sees depends on all of its queries, so that chunks are taken over whole.
        self.way, self.step = repr(rule), math.lcm(rule.chunk_size, PAGE)

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        rule, device = self._rule, query.device
        tail = layer.n_slots + torch.arange(layer.n_tail, device=device)
        sequence = tail if layer.pages is None else torch.cat([layer.pages.addresses, tail])
        first, last = rule.global_size, len(sequence) - rule.local_size
        if last <= first:
            return self._everything.select(layer, query)
        kept, votes = self._vote(layer, query, sequence, first, last)
        spans = kept[:, None] + torch.arange(rule.span, device=device) - rule.span // 2
        spans = spans[(spans >= first) & (spans < last)].unique()
        self._remember(layer, sequence[kept], votes)
        shared = torch.cat([sequence[:first], sequence[spans], sequence[last:]])
        tail_from = max(0, layer.n_tail - rule.local_size)
        return Selection(shared[shared < layer.n_slots + tail_from], tail_from)

    def _vote(
        self, layer: ContextLayer, query: torch.Tensor, sequence: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ranks in the sequence of the most-voted keys of sequence[first:last], and their votes."""
        middle = sequence[first:last]
        found = []
        if layer.pages is not None:
            keys = layer.pages.scan(layer.index).flatten(1, 2)
            found.append((keys[None], 0))
        found.append((layer.tail_keys.tokens, layer.n_slots))
        scores, addresses = [], []
        for keys, offset in found:
            allowed = torch.zeros(keys.shape[2], dtype=torch.bool, device=query.device)
            inside = middle[(middle >= offset) & (middle < offset + keys.shape[2])] - offset
            allowed[inside] = True
            if len(inside):
                score, index = select_topk(query, keys, self._rule.top_k, allowed)
                scores.append(score)
                addresses.append(torch.where(index >= 0, index + offset, -1))
        order = torch.cat(scores, -1).sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.cat(addresses, -1).gather(-1, order[..., : self._rule.top_k]).reshape(1, -1)
        ranks = torch.where(chosen >= 0, torch.searchsorted(sequence, chosen), -1)
        kept, votes = most_voted(ranks, len(sequence), self._rule.recall_clip)
        return kept[kept >= 0], votes[kept >= 0]

    def _remember(self, layer: ContextLayer, addresses: torch.Tensor, votes: torch.Tensor) -> None:
        """Count the votes of each page as evidence."""
        if layer.pages is None:
            return
        if self.evidence is None:
            self.evidence = torch.zeros(layer.pages.n_pages, device=votes.device)
        inside = addresses < layer.n_slots
        self.evidence.index_add_(0, addresses[inside] // PAGE, votes[inside].float())
