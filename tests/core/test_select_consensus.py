"""Consensus: its recall, its passages and its ranking restated in plain loops, and how its reader reads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from reattention_core import Config, Engine
from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import Pages
from reattention_core.errors import ContextTooLongError
from reattention_core.select import Consensus, Context, ReAttention
from reattention_core.select.base import Head, Probed, Question, Trusted
from reattention_core.select.closeness import SAME, closeness, rarity
from reattention_core.select.consensus import FAINT
from reattention_core.select.hops import BEHIND
from reattention_core.select.passages import Passages
from reattention_core.select.recall import recall
from tests.close import assert_close
from tests.core.families import FAMILIES, build

DIM = 4
SCALING = [0.5, 0.7]
HEADS = (Head(1, 2, 0.5), Head(0, 3, 0.3), Head(1, 0, 0.2))
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 5,
    "A cache keeps the keys. " * 9,
    "Who is the manufacturer?",
]


def share_of(pages: Pages, queries: Sequence[torch.Tensor], head: Head) -> list[float]:
    """[P]: mean share of a head's attention that the tokens of a question give each page but the sink's."""
    share = [0.0] * pages.n_pages
    query, keys = queries[head.layer][head.head].double().tolist(), pages.keys[head.layer]
    group = head.head * keys.shape[0] // len(queries[head.layer])
    for row in query:
        weights = []
        for page in range(1, pages.n_pages):
            for key in keys[group, page, : int(pages.filled[page])].double().tolist():
                dot = sum(a * b for a, b in zip(row, key, strict=True))
                weights.append((page, math.exp(SCALING[head.layer] * dot)))
        total = sum(weight for _, weight in weights)
        for page, weight in weights:
            share[page] += weight / total / len(query)
    return share


def evidence(pages: Pages, asked: Sequence[torch.Tensor], empty: Sequence[torch.Tensor]) -> torch.Tensor:
    """Every trusted head divides its trust among the pages by what they gain over the empty question."""
    total = [0.0] * pages.n_pages
    for head in HEADS:
        pairs = zip(share_of(pages, asked, head), share_of(pages, empty, head), strict=True)
        gains = [max(one - other, 0.0) for one, other in pairs]
        for page, gain in enumerate(gains):
            total[page] += head.trust * gain / max(sum(gains), 1e-9)
    return torch.tensor(total)


class Probes:
    """Stands in for the model: the queries and values of any text are drawn from its tokens."""

    def __init__(self, layers: int, heads: int, groups: int = 2) -> None:
        self.layers, self.heads, self.groups = layers, heads, groups
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, ids: Sequence[int], asking: slice) -> Probed:
        self.calls.append(tuple(ids))
        draw = torch.Generator().manual_seed(sum(ids))
        queries = [torch.randn(self.heads, len(ids), DIM, generator=draw) for _ in range(self.layers)]
        values = [torch.randn(self.groups, len(ids), DIM, generator=draw) for _ in range(self.layers)]
        return Probed([3 * query[:, asking] for query in queries], [value[:, asking] for value in values])


def corpus_of(lengths: Sequence[int], layers: int = 2, groups: int = 2) -> Pages:
    """Random pages of documents, the sink first, NaN where no token is."""
    first: list[int] = []
    filled: list[int] = []
    for length in [32, *lengths]:
        first += [len(first)] * -(-length // 32)
        filled += [min(32, length - i) for i in range(0, length, 32)]
    both = [torch.randn(groups, len(first), 32, DIM) for _ in range(2 * layers)]
    for held in both:
        held[:, torch.arange(32) >= torch.tensor(filled)[:, None]] = float("nan")
    return Pages(both[:layers], both[layers:], torch.tensor(filled), torch.tensor(first))


def likeliest(*pages: int) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """The question is the likelier the more of these pages stand before it: ten nats a page."""

    def listen(passages: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([10.0 * sum(page in pages for page in passage.tolist()) - 50 for passage in passages])

    return listen


NOTHING_LIKELIER = likeliest()


def question(probe: Probes, listen: Any = NOTHING_LIKELIER, ids: Sequence[int] = (5, 6, 7, 8)) -> Question:
    trusted = Trusted(HEADS, 1)
    return Question(ids, slice(1, 4), slice(0, 2), (1, 2, 3), probe, listen, lambda: trusted, {})


def recalled(pages: Pages, asked: Question) -> torch.Tensor:
    return recall(pages, asked, asked.probe(asked.ids, asked.asking).queries, SCALING, HEADS)


def context(pages: Pages | None, asked: Question | None, window: int = 512, tail: int = 30) -> Context:
    same = [lambda x, start: x] * 2
    return Context(window, tail, SCALING, same, pages, asked)


@pytest.mark.parametrize("seed", range(6))
def test_recall_is_the_trusted_heads_share_of_gains(seed: int) -> None:
    torch.manual_seed(seed)
    pages, probe = corpus_of([70, 5, 64, 33]), Probes(layers=2, heads=4)
    asked = question(probe)
    ours = recalled(pages, asked)
    both = probe(asked.ids, asked.asking).queries, probe((1, 2, 3), slice(3)).queries
    assert_close("evidence", ours, evidence(pages, *both), 1e-5)
    assert ours[0] == 0
    assert float(ours.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("lengths", [[9], [70, 5, 64, 33]], ids=str)
def test_where_nothing_can_be_gained_the_question_alone_decides(lengths: list[int]) -> None:
    """A corpus of one page has all mass whatever is asked; with more, the empty question gains nothing over itself."""
    pages, probe = corpus_of(lengths), Probes(layers=2, heads=4)
    asked = replace(question(probe, ids=(1, 2, 3)), asking=slice(3))
    ours = recalled(pages, asked)
    shares = [share_of(pages, probe((1, 2, 3), slice(3)).queries, head) for head in HEADS]
    expected = sum(head.trust * torch.tensor(share) for head, share in zip(HEADS, shares, strict=True))
    assert_close("evidence", ours, expected, 1e-5)
    assert float(ours.sum()) == pytest.approx(1.0, abs=1e-5)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two tokens' values [G, D], all heads side by side."""
    a, b = one.double().flatten().tolist(), other.double().flatten().tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def supports(
    pages: Pages, words: Sequence[torch.Tensor], evidence: torch.Tensor, layer: int, longest: int
) -> list[float]:
    """What every passage but the sink has for it: its evidence, and how close it comes to rare words."""
    passages, found = Passages.cut(pages, longest), []
    close: dict[tuple[int, int], list[float]] = {}
    for number, values in enumerate(words):
        for word in range(values.shape[1]):
            best = []
            for passage in range(1, passages.n):
                tokens = [(p, t) for p in passages.pages(passage).tolist() for t in range(int(pages.filled[p]))]
                best.append(max(cosine(values[:, word], pages.values[number][:, p, t]) for p, t in tokens))
            close[number, word] = best
    for passage in range(1, passages.n):
        total = math.log(sum(max(float(evidence[p]), FAINT) for p in passages.pages(passage).tolist()))
        for word in range(words[layer].shape[1]):
            holding = sum(one > SAME for one in close[0, word])
            total += max(math.log(passages.n / (holding + 0.5)), 0) * close[layer, word][passage - 1]
        found.append(total)
    return found


@pytest.mark.parametrize("longest", [2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_passages_are_supported_by_evidence_and_by_how_close_they_come_to_rare_words(seed: int, longest: int) -> None:
    torch.manual_seed(seed)
    pages, probe = corpus_of([70, 5, 100, 33]), Probes(2, 4)
    asked = question(probe, ids=(5, 6, 7, 8 + seed))
    words = [values[:, :2] for values in probe(asked.ids, slice(1, 4)).values]
    pages.values[0][:, 2, 3] = 2 * words[0][:, 0]  # the first word stands in one place
    expected = supports(pages, words, recalled(pages, asked), 1, longest)
    rule = Consensus(candidates=0, passage=longest)
    ranking = rule.rank(pages, asked, SCALING, 14)
    assert ranking.order == [1 + n for n in sorted(range(len(expected)), key=lambda n: -expected[n])]
    shares = torch.tensor(expected).softmax(0)  # what no likelihood is part of is taken as it is
    assert_close("evidence", ranking.passages.total(ranking.evidence)[1:], shares, 1e-4)


def test_closeness_is_the_same_in_parts_and_rare_words_tell_most(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pages, words = corpus_of([70, 5, 100, 33]), torch.randn(2, 3, DIM)
    whole = closeness(pages, words, 1)
    assert whole.isfinite().all() and float(whole.abs().max()) <= 1 + 1e-6
    monkeypatch.setattr("reattention_core.select.closeness.AT_ONCE", 2)
    assert_close("in parts", closeness(pages, words, 1), whole, 1e-6)
    held = torch.tensor([[1.0, 0.99, 0.985, 1.0], [0.9, 1.0, 0.9, 0.1], [0.5, 0.6, 0.7, 0.8]])
    assert rarity(held).tolist() == pytest.approx([math.log(5 / 4.5), math.log(5 / 1.5), math.log(5 / 0.5)])


@pytest.mark.parametrize("longest", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_passages_are_equal_parts_of_documents(longest: int, seed: int) -> None:
    torch.manual_seed(seed)
    pages = corpus_of(torch.randint(1, 700, (7,)).tolist())
    passages, first = Passages.cut(pages, longest), pages.first.tolist()
    assert passages.of.tolist() == [i for i in range(passages.n) for _ in passages.pages(i)]
    for document in sorted(set(first)):
        own = [i for i in range(passages.n) if int(passages.document_first[i]) == document]
        sizes = [len(passages.pages(i)) for i in own]
        assert sum(sizes) == first.count(document)
        assert max(sizes) <= longest
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-first.count(document) // longest), "as few parts as can be"
        for i in own:
            near = passages.pages(i, 1).tolist()
            assert all(first[page] == document for page in near)
            assert len(near) == len(passages.pages(i)) + (i != own[0]) + (i != own[-1])


def test_the_likeliest_passage_comes_first_and_recall_decides_between_equals() -> None:
    torch.manual_seed(0)
    pages, probe = corpus_of([64, 64, 64, 64]), Probes(2, 4)
    asked = question(probe, likeliest(5, 6))
    ranking = Consensus().rank(pages, asked, SCALING, 14)
    assert ranking.order[0] == ranking.read[0] == 3, "pages 5 and 6 are the third document"
    assert int(ranking.evidence.argmax()) in (5, 6)
    assert float(ranking.evidence.sum()) == pytest.approx(1.0, abs=1e-5)
    prior = ranking.passages.total(recalled(pages, asked))
    by_recall = prior.argsort(descending=True).tolist()[:-1]
    alone = Consensus(candidates=0, closeness=0).rank(pages, asked, SCALING, 14)
    assert alone.order == by_recall
    held = recalled(pages, asked).clamp(min=FAINT)[1:]
    assert_close("evidence of recall alone", alone.evidence[1:], held / held.sum(), 1e-4)
    assert Consensus(closeness=0).rank(pages, question(probe), SCALING, 14).order == by_recall
    supported = Consensus(candidates=0).rank(pages, asked, SCALING, 14).order
    assert Consensus().rank(pages, question(probe), SCALING, 14).order == supported


def test_only_candidates_are_compared() -> None:
    pages, heard = corpus_of([32] * 12), list[list[int]]()

    def listen(passages: Sequence[torch.Tensor]) -> torch.Tensor:
        heard.append([int(p) for passage in passages for p in passage])
        return torch.zeros(len(passages))

    ranking = Consensus(candidates=5, max_passages=1).rank(pages, question(Probes(2, 4), listen), SCALING, 14)
    assert [len(one) for one in heard] == [5]
    assert sorted(ranking.order) == sorted(heard[0])
    assert (ranking.evidence > 0).sum() == 5


@pytest.mark.parametrize(("gain", "hops"), [(9.0, 2), (11.0, 1)])
def test_a_further_passage_is_read_where_the_question_gets_likelier(gain: float, hops: int) -> None:
    """Ten nats a page: documents of one page each, of which 2 and 7 answer together."""
    pages = corpus_of([32] * 9)
    rule = Consensus(gain=gain, share=1.0)
    ranking = rule.rank(pages, question(Probes(2, 4), likeliest(2, 7)), SCALING, 14)
    first = ranking.order[0]
    assert set(ranking.order[:2]) == {2, 7}
    assert ranking.read == ([first, 9 - first] if hops == 2 else [first])
    assert rule.model_copy(update={"max_passages": 1}).rank(
        pages, question(Probes(2, 4), likeliest(2, 7)), SCALING, 14
    ).read == [first]


@pytest.mark.parametrize("hops", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_second_passage_is_ranked_by_what_it_adds_to_the_first(seed: int, hops: bool) -> None:
    """Nine documents of a page; how likely the question is behind one or two is drawn. The order in plain loops.

    Where no second passage makes it likely enough, every passage is ranked by itself.
    """
    torch.manual_seed(seed)
    pages, probe = corpus_of([32] * 9), Probes(2, 4)
    sets = {frozenset({a, b}) for a in range(1, 10) for b in range(1, 10)}
    nats = {some: 4 * torch.randn(()).item() + 20 * len(some) for some in sorted(sets, key=sorted)}

    def listen(passages: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.tensor([nats[frozenset(passage.tolist())] for passage in passages])

    asked = question(probe, listen)
    pages.values[0][:, 3, 7] = probe(asked.ids, slice(1, 2)).values[0][:, 0]
    evidence = recalled(pages, asked).clamp(min=FAINT).log().tolist()
    same, close = (closeness(pages, probe(asked.ids, slice(1, 3)).values[layer], layer) for layer in (0, 1))
    rare = rarity(same[:, 1:]).tolist()

    def words(*together: int) -> float:
        return sum(w * max(float(close[q, page]) for page in together) for q, w in enumerate(rare))

    first = max(range(1, 10), key=lambda p: evidence[p] + words(p) + nats[frozenset({p})])
    alone = {p: evidence[p] + nats[frozenset({p})] for p in range(1, 10) if p != first}
    tried = sorted(alone, key=lambda p: -(alone[p] + words(first, p)))[:3]
    both = {p: nats[frozenset({first, p})] + evidence[p] + words(first, p) for p in tried}
    lost = {p: both.get(p, min(both.values())) - max(both.values()) for p in alone}
    behind = {p: alone[p] + lost[p] for p in alone}
    above = max(evidence[first] + nats[frozenset({first})], max(behind.values()) + BEHIND)
    second = max(tried, key=lambda p: nats[frozenset({first, p})])
    gain = nats[frozenset({first, second})] - nats[frozenset({first})]
    if not hops:
        behind, above = (
            {p: alone[p] + words(p) for p in alone},
            evidence[first] + words(first) + nats[frozenset({first})],
        )
    rule = Consensus(max_passages=2, gain=gain * 0.99 if hops else gain * 1.01, share=1.0)
    ranking = rule.rank(pages, asked, SCALING, 14)
    assert ranking.read == ([first, second] if hops else [first])
    assert ranking.order[0] == first
    assert ranking.order[1:] == sorted(behind, key=lambda p: -behind[p])
    shares = torch.tensor([(above if p == first else behind[p]) / 3 for p in range(1, 10)]).softmax(0)
    assert_close("evidence", ranking.evidence[1:], shares, 1e-4)


def test_close_passages_are_read_by_their_share() -> None:
    pages = corpus_of([32] * 6)
    near, far = (
        Consensus(share=share, gain=99).rank(pages, question(Probes(2, 4)), SCALING, 14) for share in (1e-9, 1)
    )
    assert near.read == near.order[:4]
    assert far.read == far.order[:1]


def test_the_pages_to_read_lie_around_the_strongest_and_fit_the_room() -> None:
    """One document of 12 pages in two parts of six; the second is chosen, and one page of the first with it."""
    pages = corpus_of([12 * 32, 64])
    rule = Consensus(share=1.0, pages=99)
    ranking = rule.rank(pages, question(Probes(2, 4), likeliest(9)), SCALING, 20)
    assert ranking.read == [2]
    assert rule.choose(ranking, 20).tolist() == [6, 7, 8, 9, 10, 11, 12]
    strongest = int(ranking.evidence[7:13].argmax()) + 7
    for room in (1, 2, 3):
        chosen = rule.choose(ranking, room).tolist()
        assert len(chosen) == room
        assert strongest in chosen
        assert chosen == list(range(chosen[0], chosen[0] + room))
    assert rule.choose(ranking, 3).tolist() == Consensus(share=1.0, pages=3).choose(ranking, 20).tolist()


def test_the_most_important_document_stands_next_to_the_question() -> None:
    """Documents of 1, 12 (two parts) and 1 pages; within a document pages keep their order, whichever part is the better one."""
    pages = corpus_of([32, 12 * 32, 32])
    rule = Consensus(pages=99, neighbours=0)
    ranking = rule.rank(pages, question(Probes(2, 4)), SCALING, 20)
    for read, expected in (
        ([1, 4], [14, 1]),
        ([4, 1], [1, 14]),
        ([3, 1, 2], [1, *range(2, 14)]),
        ([1, 3, 4, 2], [14, *range(2, 14), 1]),
    ):
        assert rule.choose(replace(ranking, read=read), 20).tolist() == expected
    chosen = rule.choose(replace(ranking, read=[4, 1, 2]), 5)
    assert chosen[-2:].tolist() == [1, 14], "the room goes to the most important first"
    assert len(chosen) == 5
    reader = Consensus(share=1e-9, gain=99).reader(context(pages, question(Probes(2, 4))))
    layer = ContextLayer(0, pages)
    layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    read_order = (reader.select(layer, torch.randn(1, 4, 3, DIM)).addresses // 32).unique_consecutive().tolist()
    assert read_order[0] == 0 and sorted(read_order[1:]) == reader.cited().tolist()


def test_a_document_that_is_one_passage_is_read_whole() -> None:
    pages = corpus_of([8 * 32, 64])
    rule = Consensus(share=1.0, pages=2)
    ranking = rule.rank(pages, question(Probes(2, 4), likeliest(3)), SCALING, 20)
    assert rule.choose(ranking, 20).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_same_pages_for_every_layer_and_token_with_the_sink_first() -> None:
    pages, probe = corpus_of([70, 5, 64, 33]), Probes(2, 4)
    reader = Consensus().reader(context(pages, question(probe, likeliest(4))))
    layers = [ContextLayer(index, pages) for index in range(2)]
    for layer in layers:
        layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    query = torch.randn(1, 4, 3, DIM)
    selection = reader.select(layers[0], query)
    assert reader.select(layers[1], query) is selection
    assert reader.select(layers[0], query[:, :, :1]) is selection
    assert reader.select_local(layers[0], query, 8) is selection
    chosen, filled = reader.cited().tolist(), pages.filled.tolist()
    assert 4 in chosen
    expected = [*range(32), *(page * 32 + slot for page in chosen for slot in range(filled[page]))]
    assert (selection.addresses.tolist(), selection.tail_from) == (expected, 0)


@pytest.mark.parametrize("tail", [30, 447, 448])
def test_sink_pages_and_tail_fit_the_window(tail: int) -> None:
    """512 tokens: with a tail of 448, one page beside the sink."""
    pages = corpus_of([320, 320, 32])
    rule = Consensus(max_passages=99, share=1e-9, neighbours=5)
    reader = rule.reader(context(pages, question(Probes(2, 4)), 512, tail))
    layer = ContextLayer(0, pages)
    layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    width = len(reader.select(layer, torch.randn(1, 4, 3, DIM)).addresses)
    assert 512 - 32 < width + tail <= 512


def test_no_room_for_a_page_is_said_with_the_numbers() -> None:
    pages = corpus_of([40])
    with pytest.raises(ContextTooLongError, match=r"449 tokens .* 512") as error:
        Consensus().reader(context(pages, question(Probes(2, 4)), 512, 449))
    assert (error.value.n_tokens, error.value.limit) == (449, 512)


def test_the_empty_question_is_run_once_for_a_corpus() -> None:
    pages, probe = corpus_of([70, 33]), Probes(2, 4)
    memo: dict[str, Any] = {}
    first = Consensus().reader(context(pages, replace(question(probe), memo=memo)))
    second = Consensus().reader(context(pages, replace(question(probe, ids=(9, 9, 9)), memo=memo)))
    again = Consensus().reader(context(pages, replace(question(probe), memo=memo)))
    assert probe.calls.count((1, 2, 3)) == 1
    assert len(probe.calls) == 4
    assert first.evidence is not None and second.evidence is not None and again.evidence is not None
    assert torch.equal(first.evidence, again.evidence)
    assert not torch.equal(first.evidence, second.evidence)


def test_a_question_without_any_gain_reads_a_passage_and_the_sink_once() -> None:
    """The question that is the empty one gains nothing anywhere: what it gives most mass is read, and the sink's page only once."""
    pages, probe = corpus_of([70, 33]), Probes(2, 4)
    asked = replace(question(probe), ids=(1, 2, 3), asking=slice(0, 3))
    reader = Consensus(max_passages=1).reader(context(pages, asked))
    assert reader.evidence is not None
    assert float(reader.evidence.sum()) == pytest.approx(1.0)
    layer = ContextLayer(0, pages)
    layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    addresses = reader.select(layer, torch.randn(1, 4, 3, DIM)).addresses.tolist()
    assert addresses[:32] == list(range(32)) and min(addresses[32:]) >= 32
    assert reader.cited().tolist() in ([1, 2, 3], [4, 5])


def test_without_a_corpus_everything_is_read_while_it_fits() -> None:
    reader, layer = Consensus().reader(context(None, None, 100, 100)), ContextLayer(0, None)
    for _ in range(4):
        layer.update(torch.randn(1, 2, 25, DIM), torch.randn(1, 2, 25, DIM))
        selection = reader.select(layer, torch.randn(1, 4, 25, DIM))
        assert (selection.addresses.tolist(), selection.tail_from) == ([], 0)


def test_without_a_corpus_a_longer_prompt_is_read_by_reattention() -> None:
    ours, theirs = (
        Consensus().reader(context(None, None, 100, 101)),
        ReAttention.for_window(100).reader(context(None, None, 100, 101)),
    )
    layer, selected = ContextLayer(0, None), 0
    assert ours.chunk == theirs.chunk
    for _ in range(30):
        layer.update(torch.randn(1, 2, 5, DIM), torch.randn(1, 2, 5, DIM))
        query = torch.randn(1, 4, 5, DIM)
        one, other = ours.select(layer, query), theirs.select(layer, query)
        assert (one.addresses.tolist(), one.tail_from) == (other.addresses.tolist(), other.tail_from)
        selected += len(one.addresses)
    assert selected > 0


def test_layers_may_differ_in_their_number_of_heads(tokenizer: PreTrainedTokenizerFast) -> None:
    """As in Laguna, which attaches."""
    model = build("laguna", FAMILIES["laguna"] | dict(vocab_size=512))
    with Engine(model, tokenizer, Config(cache_dtype="float32", stop=())) as engine:
        corpus = engine.ingest(TEXTS, progress=False)
        answer = corpus.ask("Who jumps over the dog?", max_new_tokens=2)
    assert answer.sources


def test_pages_that_hold_nothing_at_a_documents_end_change_no_part() -> None:
    full, rest = corpus_of([10 * 32, 64]), corpus_of([12 * 32, 64])
    rest.filled[11:13] = 0
    shorter, longer = Passages.cut(full, 8), Passages.cut(rest, 8)
    assert [shorter.pages(n, 1).tolist() for n in range(1, 3)] == [longer.pages(n, 1).tolist() for n in range(1, 3)]
    assert longer.n == shorter.n == 4
    assert longer.of[11:13].tolist() == [2, 2]
    assert longer.pages(3).tolist() == [13, 14]
