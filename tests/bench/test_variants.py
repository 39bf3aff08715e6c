"""Rules measured beside the engine's: with their defaults they are those, and what they change is restated in plain loops."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from reattention_bench.variants import Recalls, Votes
from reattention_core import Consensus, Engine, ReAttention
from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.select import Context, Selector
from reattention_core.select.base import Head, Probed, Question, Trusted

DIM, SCALING = 4, [0.5, 0.7]
SMALL = {"global_size": 4, "top_k": 2, "span": 4, "local_size": 8, "chunk_size": 4, "recall_clip": 3}


@pytest.mark.parametrize(
    ("variant", "rule"), [(Recalls(candidates=2), Consensus(candidates=2)), (Votes(**SMALL), ReAttention(**SMALL))]
)
def test_a_variant_with_its_defaults_is_the_rule(engine: Engine, variant: Selector, rule: Selector) -> None:
    texts = ["The mill grinds rye and oats. " * 4, "A ferry carries sheep. " * 5, "The bridge is made of stone. " * 3]
    corpus = engine.ingest([Document(text=text, id=text[:6]) for text in texts], progress=False)
    one, other = (corpus.ask("What does the ferry carry?", strategy=s, max_new_tokens=4) for s in (variant, rule))
    assert one.text == other.text
    assert torch.equal(one.evidence.pages, other.evidence.pages)


def pages_of(filled: Sequence[int], groups: int = 1) -> Pages:
    """Random pages of one document, NaN where no token is; two layers."""
    both = [torch.randn(groups, len(filled), 32, DIM) for _ in range(4)]
    for held in both:
        held[:, torch.arange(32) >= torch.tensor(filled)[:, None]] = float("nan")
    return Pages(both[:2], both[2:], torch.tensor(filled), torch.zeros(len(filled), dtype=torch.int64))


def asked(empty: torch.Tensor) -> Question:
    """A question whose empty form has the given queries in every layer, [H, Q, D]."""
    return Question(
        (1,), slice(0, 1), slice(0, 1), (2,), lambda i, s: Probed([empty] * 2, []), None, lambda: Trusted([], 0), {}
    )  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words", ["all", "last"])
@pytest.mark.parametrize("votes", ["shares", "squares"])
def test_hits_are_counted_by_page(seed: int, words: str, votes: str) -> None:
    torch.manual_seed(seed)
    pages = pages_of([32, 32, 20, 32])
    query, empty = torch.randn(3, 5, DIM), torch.randn(3, 2, DIM)
    heads = (Head(1, 2, 0.5), Head(0, 1, 0.3))

    def counted(rows: torch.Tensor, head: Head) -> list[float]:
        count: Counter[int] = Counter()
        for row in rows[head.head] if words == "all" else rows[head.head, -1:]:
            scores = {}
            for page in range(1, 4):
                for slot, key in enumerate(pages.keys[head.layer][0, page, : int(pages.filled[page])]):
                    scores[page, slot] = float(row @ key)
            count.update(page for page, _ in sorted(scores, key=lambda at: -scores[at])[:6])
        return [count[page] / count.total() for page in range(4)]

    expected = [0.0] * 4
    for head in heads:
        gains = [max(a - b, 0.0) for a, b in zip(counted(query, head), counted(empty, head), strict=True)]
        for page, gain in enumerate(gains):
            expected[page] += head.trust * (gain**2 if votes == "squares" else gain / max(sum(gains), 1e-9))
    rule = Recalls(score="hits", hits=6, words=words, votes=votes)
    found = rule.recalled(pages, asked(empty), [query] * 2, SCALING, heads)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_all_heads_alike_and_no_empty_question() -> None:
    torch.manual_seed(0)
    pages = pages_of([32, 32, 20])
    query = torch.randn(3, 5, DIM)
    expected = torch.zeros(3)
    for layer in range(2):
        keys = pages.keys[layer][0, 1:].flatten(0, 1)[:52]
        for head in range(3):
            weights = (query[head] @ keys.T * SCALING[layer]).softmax(-1).mean(0)
            expected += torch.tensor([0.0, float(weights[:32].sum()), float(weights[32:].sum())])
    found = Recalls(trust="all", empty=False).recalled(pages, asked(query), [query] * 2, SCALING, ())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by", ["count", "mass"])
@pytest.mark.parametrize("per", ["layer", "kv_head"])
@pytest.mark.parametrize("exact", [True, False])
def test_votes_restated(seed: int, by: str, per: str, exact: bool) -> None:
    torch.manual_seed(seed)
    pages, rule = pages_of([32] * 12 + [9], groups=2), Votes(by=by, per=per, exact=exact, **SMALL)
    layer = ContextLayer(1, pages)
    query, key = torch.randn(4, 4, DIM), torch.randn(2, 4, DIM)
    layer.update(key[None], key[None])
    selection = rule.reader(Context(512, 100, SCALING, [lambda x, start: x] * 2, pages)).select(layer, query[None])
    sequence = torch.cat([pages.keys[1].flatten(1, 2)[:, : 12 * 32 + 9], key], 1)
    n, first = sequence.shape[1], SMALL["global_size"]
    last = n - SMALL["local_size"]
    elected: list[dict[int, float]] = [{} for _ in range(2)]
    for head in range(4):
        for row in query[head]:
            scores = {place: float(row @ sequence[head // 2, place]) for place in range(first, last)}
            if not exact:
                blocks = [range(start, min(start + 128, last)) for start in range(first, last, 128)]
                scores = {place: scores[place] for place in (max(block, key=scores.__getitem__) for block in blocks)}
            best = sorted(scores, key=lambda place: -scores[place])[:2]
            weight = torch.tensor([scores[place] * SCALING[1] for place in best]).softmax(0).tolist()
            for place, mass in zip(best, weight, strict=True):
                votes = elected[head // 2 if per == "kv_head" else 0]
                votes[place] = votes.get(place, 0.0) + (mass if by == "mass" else 1.0)
    windows = []
    for votes in elected[: 2 if per == "kv_head" else 1]:
        kept = sorted(votes, key=lambda place: (-votes[place], place))[:3]
        spans = {place for centre in kept for place in range(centre - 2, centre + 2) if first <= place < last}
        windows.append([*range(first), *sorted(spans), *range(last, n)])
    slots, corpus = pages.n_slots, n - 4
    address = [place if place < corpus else place - corpus + slots for place in range(n)]
    if per == "layer":
        seen = [*selection.addresses.tolist(), *range(slots + selection.tail_from, slots + 4)]
        assert seen == [address[place] for place in windows[0]]
        return
    for head in range(4):
        for at in range(4):
            seen = [a for a in selection.addresses[head, at].tolist() if a >= 0]
            assert seen == [address[place] for place in windows[head // 2] if place <= corpus + at]
