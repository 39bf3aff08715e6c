"""Consensus with a recall that finds pages otherwise; knows neither its comparison nor its hops."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.select import Consensus, mass
from reattention_core.select.base import Head, Question
from reattention_core.select.recall import beyond, divided, sharing
from reattention_kernels import select_topk


class Recalls(Consensus):
    """With its defaults, what `consensus` is.

    Attributes:
        empty: whether what an empty question gives each page is taken off.
        words: whose queries look: all of the question's in its form, or its last token's alone.
        score: the softmax mass that a page gets, or how many of the best keys of each query it holds.
        hits: how many keys of each query those are.
        trust: the heads of the exam, each with its trust, or all heads of the model alike.
        votes: whether a head's evidence is its share of gains, or the squares of those.
    """

    name = "recalls"

    empty: bool = True
    words: Literal["all", "last"] = "all"
    score: Literal["mass", "hits"] = "mass"
    hits: int = Field(default=16, ge=1)
    trust: Literal["exam", "all"] = "exam"
    votes: Literal["shares", "squares"] = "shares"

    def recalled(
        self,
        pages: Pages,
        question: Question,
        queries: Sequence[torch.Tensor],
        scaling: Sequence[float],
        heads: Sequence[Head],
    ) -> torch.Tensor:
        """Evidence of every page, [P] float32; arguments as `recall` has them."""
        if self.trust == "all":
            heads = [Head(layer, head, 1.0) for layer, query in enumerate(queries) for head in range(len(query))]
        gain = self._given(pages, queries, scaling, heads)
        if self.empty:
            key = f"empty {heads} {self.words} {self.score} {self.hits}"
            if key not in question.memo:
                unasked = question.probe(question.empty, slice(0, len(question.empty))).queries
                question.memo[key] = self._given(pages, unasked, scaling, heads)
            gain = beyond(gain, question.memo[key])
        if self.votes == "squares":
            return torch.tensor([head.trust for head in heads], device=gain.device) @ gain.square()
        return divided(gain, heads)

    def _given(
        self, pages: Pages, queries: Sequence[torch.Tensor], scaling: Sequence[float], heads: Sequence[Head]
    ) -> torch.Tensor:
        """What the heads give every page: [len(heads), P] float32, each row with the sum 1."""
        if self.words == "last":
            queries = [query[:, -1:] for query in queries]
        if self.score == "mass":
            return mass(pages, queries, scaling, heads)
        rows = torch.zeros(len(heads), pages.n_pages, device=pages.filled.device)
        filled = torch.arange(PAGE, device=pages.filled.device) < pages.filled[:, None]
        filled[0] = False
        repeats = [len(query) // pages.groups(layer) for layer, query in enumerate(queries)]
        for (layer, group), own in sharing(heads, repeats).items():
            keys = pages.scan_part(layer, 0, pages.n_pages, group).flatten(1, 2)
            for number in own:
                asked = queries[layer][heads[number].head][None, None].to(keys.dtype)
                found = select_topk(asked, keys[None], self.hits, filled.flatten())[1].flatten()
                found = found[found >= 0] // PAGE
                rows[number] = torch.bincount(found, minlength=pages.n_pages) / max(len(found), 1)
        return rows
