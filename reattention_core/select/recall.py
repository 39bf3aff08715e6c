"""How much a question asks for each page, by the heads that are trusted; knows no passages and chooses nothing.

The question is run behind the sink alone; its un-rotated queries score every page of the corpus. A head's gain is the softmax
mass it gives a page beyond what an empty question gives it. Few heads of a model look for what a question asks (retrieval
heads, arXiv 2404.15574; query-focused ones, arXiv 2506.09944), and the others only add noise: each trusted head has one vote,
as large as its trust, which it divides among the pages by its gains.
"""

from collections.abc import Sequence

import torch

from reattention_core.cache.pages import Pages
from reattention_core.select.base import Head, Question
from reattention_kernels import page_evidence


def recall(
    pages: Pages,
    question: Question,
    queries: Sequence[torch.Tensor],
    scaling: Sequence[float],
    heads: Sequence[Head],
) -> torch.Tensor:
    """Evidence of every page, [P] float32; the sink's page has none.

    Args:
        pages: the corpus.
        question: what is asked.
        queries: its own, [H, Q, D] a layer.
        scaling: each layer's factor on q·k.
        heads: whose votes count.
    """
    return divided(gains(pages, question, queries, scaling, heads), heads)


def divided(gain: torch.Tensor, heads: Sequence[Head]) -> torch.Tensor:
    """What the pages have, [P] float32, when each head divides its trust among them by its gains [len(heads), P]."""
    # A head that gains nothing keeps its vote.
    share = gain / gain.sum(1, keepdim=True).clamp(min=1e-9)
    trust = torch.tensor([head.trust for head in heads], device=gain.device)
    evidence: torch.Tensor = trust @ share
    return evidence


def gains(
    pages: Pages,
    question: Question,
    queries: Sequence[torch.Tensor],
    scaling: Sequence[float],
    heads: Sequence[Head],
) -> torch.Tensor:
    """Softmax mass that the heads give every page beyond what an empty question gives it: [len(heads), P] float32.

    Where nothing is gained anywhere it is the mass that the question gives, see `beyond`.
    """
    key = f"empty {heads}"
    if key not in question.memo:
        unasked = question.probe(question.empty, slice(0, len(question.empty))).queries
        question.memo[key] = mass(pages, unasked, scaling, heads)
    return beyond(mass(pages, queries, scaling, heads), question.memo[key])


def beyond(asked: torch.Tensor, unasked: torch.Tensor) -> torch.Tensor:
    """What a question gives the pages more than an empty one does, [heads, P] like both.

    Where nothing is gained anywhere (a corpus of one page has all mass always, and the empty question is no other than itself)
    it is what the question gives, so that something is read.
    """
    gain = (asked - unasked).clamp(min=0)
    return torch.where(gain.any(), gain, asked)


def mass(
    pages: Pages, queries: Sequence[torch.Tensor], scaling: Sequence[float], heads: Sequence[Head]
) -> torch.Tensor:
    """Softmax mass that the heads' queries ([H, Q, D] for every layer) give every page: [len(heads), P] float32."""
    filled = pages.filled.clone()
    filled[0] = 0
    rows = torch.empty(len(heads), pages.n_pages, device=filled.device)
    repeats = [len(query) // pages.groups(layer) for layer, query in enumerate(queries)]
    for (layer, group), own in sorted(sharing(heads, repeats).items()):
        each = repeats[layer]
        asked = queries[layer][group * each : (group + 1) * each]
        wanted = [heads[number].head - group * each for number in own]
        rows[own] = page_evidence(asked, pages.scan_head(layer, group), filled, scaling[layer], heads=wanted)
    return rows


def sharing(heads: Sequence[Head], repeats: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """The numbers of the heads that read each key-value head, whose layer and number are the key; the others' are not read.

    Args:
        heads: of the model.
        repeats: how many heads of each layer share a key-value head.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for number, head in enumerate(heads):
        found.setdefault((head.layer, head.head // repeats[head.layer]), []).append(number)
    return found
