"""Consensus: its evidence and its choice of pages restated in plain loops, and how its reader reads."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from reattention_core import Config, Corpus, Engine
from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import Pages
from reattention_core.errors import ContextTooLongError
from reattention_core.prompts import build_prompt
from reattention_core.select import Consensus, Context, ReAttention
from reattention_core.select.base import Question
from tests.close import assert_close
from tests.core.families import FAMILIES, build

DIM = 4
TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 5,
    "A cache keeps the keys. " * 9,
    "Who is the manufacturer?",
]


def masses(pages: Pages, queries: Sequence[torch.Tensor], scaling: Sequence[float]) -> list[list[list[float]]]:
    """[layers][heads][P]: share of the attention that the tokens of a question give each page but the sink's."""
    out = []
    for layer, query in enumerate(queries):
        heads = []
        for head, rows in enumerate(query.double().tolist()):
            group = head * pages.keys[layer].shape[0] // len(query)
            share = [0.0] * pages.n_pages
            for row in rows:
                weights = []
                for page in range(1, pages.n_pages):
                    for key in pages.keys[layer][group, page, : int(pages.filled[page])].double().tolist():
                        weights.append(
                            (page, math.exp(scaling[layer] * sum(a * b for a, b in zip(row, key, strict=True))))
                        )
                total = sum(weight for _, weight in weights)
                for page, weight in weights:
                    share[page] += weight / total / len(rows)
            heads.append(share)
        out.append(heads)
    return out


def evidence(asked: list[list[list[float]]], empty: list[list[list[float]]]) -> torch.Tensor:
    """Sum of squares, over all layers and heads, of what the question gives beyond the empty one."""
    total = [0.0] * len(asked[0][0])
    for asked_heads, empty_heads in zip(asked, empty, strict=True):
        for asked_share, empty_share in zip(asked_heads, empty_heads, strict=True):
            for page, (one, other) in enumerate(zip(asked_share, empty_share, strict=True)):
                total[page] += max(one - other, 0.0) ** 2
    return torch.tensor(total)


def choice(rule: Consensus, first: list[int], gain: list[float], room: int) -> list[int]:
    """Pages to read: the strongest, each with its neighbours in the document, until there is no room."""
    strongest = sorted(range(1, len(gain)), key=lambda p: (-gain[p], p))
    strongest = [p for p in strongest if gain[p] > 0 and gain[p] >= rule.share * gain[strongest[0]]]
    read: list[int] = []
    for page in strongest[: rule.max_pages]:
        order = [page]
        for distance in range(1, rule.neighbours + 1):
            order += [page - distance, page + distance]
        for near in order:
            inside = 0 < near < len(gain) and first[near] == first[page]
            if inside and near not in read and len(read) < room:
                read.append(near)
    return sorted(read)


class Probes:
    """Stands in for the model: the queries of any text are drawn from its tokens."""

    def __init__(self, layers: int, heads: int) -> None:
        self.layers, self.heads = layers, heads
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, ids: Sequence[int], asking: slice) -> list[torch.Tensor]:
        self.calls.append(tuple(ids))
        draw = torch.Generator().manual_seed(sum(ids))
        queries = [torch.randn(self.heads, len(ids), DIM, generator=draw) for _ in range(self.layers)]
        return [3 * query[:, asking] for query in queries]


def corpus_of(lengths: Sequence[int], layers: int = 2, groups: int = 2) -> Pages:
    """Random pages of documents, the sink first, NaN where no token is."""
    first: list[int] = []
    filled: list[int] = []
    for length in [32, *lengths]:
        first += [len(first)] * -(-length // 32)
        filled += [min(32, length - i) for i in range(0, length, 32)]
    keys = [torch.randn(groups, len(first), 32, DIM) for _ in range(layers)]
    for key in keys:
        key[:, torch.arange(32) >= torch.tensor(filled)[:, None]] = float("nan")
    return Pages(keys, [k.clone() for k in keys], torch.tensor(filled), torch.tensor(first))


def question(probe: Probes, ids: Sequence[int] = (5, 6, 7, 8), asking: slice = slice(1, 4)) -> Question:
    return Question(ids, asking, (1, 2, 3), probe, {})


def context(pages: Pages | None, asked: Question | None, window: int = 512, tail: int = 30) -> Context:
    same = [lambda x, start: x] * 2
    return Context(window, tail, [0.5, 0.7], same, pages, asked)


@pytest.mark.parametrize("seed", range(6))
def test_evidence_is_the_sum_of_the_squared_gains(seed: int) -> None:
    torch.manual_seed(seed)
    pages, probe = corpus_of([70, 5, 64, 33]), Probes(layers=2, heads=4)
    asked = question(probe)
    ours = Consensus().evidence(pages, asked, [0.5, 0.7])
    both = (
        masses(pages, probe(asked.ids, asked.asking), [0.5, 0.7]),
        masses(pages, probe((1, 2, 3), slice(3)), [0.5, 0.7]),
    )
    assert_close("evidence", ours, evidence(*both), 1e-5)
    assert ours[0] == 0


def test_evidence_of_a_real_question(engine: Engine) -> None:
    """With history: only the question itself asks, and it is run behind the sink alone, not over the corpus."""
    corpus = engine.ingest(TEXTS, progress=False)
    prompt = build_prompt(engine.tokens, engine.config, "Who jumps over the dog?", [("Is it a fox?", "Yes.")])
    asked = corpus.edition.question(prompt, lambda: False)
    attachment = engine.attachment
    probed = Context(engine.window, 40, attachment.scaling, attachment.rotations, corpus.pages, asked)
    ours = Consensus().reader(probed).evidence
    alone = Corpus(engine, None, corpus.pages.before(1), [], "independent").edition.question(prompt, lambda: False)
    both = [alone.probe(prompt.ids, prompt.asking), alone.probe(prompt.empty, slice(0, len(prompt.empty)))]
    assert both[0][0].shape[1] < len(prompt.ids)
    assert ours is not None
    assert_close("evidence", ours, evidence(*(masses(corpus.pages, q, attachment.scaling) for q in both)), 1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_of_pages(seed: int) -> None:
    torch.manual_seed(seed)
    pages = corpus_of(torch.randint(1, 200, (6,)).tolist())
    gain = torch.rand(pages.n_pages).square()
    gain[0] = 0
    rule = Consensus(max_pages=1 + seed % 5, share=seed % 4 / 4, neighbours=seed % 3)
    for room in (1, 2, 3, 5, 100):
        chosen = rule.choose(pages, gain, room).tolist()
        assert chosen == choice(rule, pages.first.tolist(), gain.tolist(), room)
        assert int(gain.argmax()) in chosen
        assert len(chosen) <= room


@pytest.mark.parametrize(
    ("rule", "room", "chosen"),
    [
        (Consensus(share=0.5), 9, [1, 2, 4, 5]),
        (Consensus(share=0.6, neighbours=0), 9, [2, 4]),
        (Consensus(share=0.61, neighbours=0), 9, [4]),
        (Consensus(share=0.2, neighbours=0), 9, [2, 4, 5]),
        (Consensus(share=0.2, neighbours=0, max_pages=2), 9, [2, 4]),
        (Consensus(share=0.2, neighbours=1, max_pages=3), 9, [1, 2, 4, 5, 6]),
        (Consensus(share=0.5, neighbours=2), 9, [1, 2, 4, 5, 6]),
        (Consensus(share=0.5, neighbours=9), 9, [1, 2, 4, 5, 6, 7, 8]),
        (Consensus(share=0.5), 1, [4]),
        (Consensus(share=0.5), 2, [4, 5]),
        (Consensus(share=0.5), 3, [2, 4, 5]),
    ],
)
def test_the_choice_of_pages_by_hand(rule: Consensus, room: int, chosen: list[int]) -> None:
    """Documents of the pages 1 to 2, of 3 alone, and of 4 to 8."""
    pages = corpus_of([64, 20, 160])
    gain = torch.tensor([0.0, 0.01, 0.6, 0.01, 1.0, 0.3, 0.01, 0.01, 0.01])
    assert rule.choose(pages, gain, room).tolist() == chosen


def test_the_same_pages_for_every_layer_and_token_with_the_sink_first() -> None:
    pages, probe = corpus_of([70, 5, 64, 33]), Probes(2, 4)
    reader = Consensus().reader(context(pages, question(probe)))
    layers = [ContextLayer(index, pages) for index in range(2)]
    for layer in layers:
        layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    query = torch.randn(1, 4, 3, DIM)
    selection = reader.select(layers[0], query)
    assert reader.select(layers[1], query) is selection
    assert reader.select(layers[0], query[:, :, :1]) is selection
    assert reader.select_local(layers[0], query, 8) is selection
    assert reader.evidence is not None
    chosen = choice(Consensus(), pages.first.tolist(), reader.evidence.tolist(), 14)
    filled = pages.filled.tolist()
    expected = [*range(32), *(page * 32 + slot for page in chosen for slot in range(filled[page]))]
    assert (selection.addresses.tolist(), selection.tail_from) == (expected, 0)
    assert reader.cited().tolist() == chosen


@pytest.mark.parametrize("tail", [30, 447, 448])
def test_sink_pages_and_tail_fit_the_window(tail: int) -> None:
    """512 tokens: with a tail of 448, one page beside the sink."""
    pages = corpus_of([320, 320, 32])
    reader = Consensus(max_pages=99, share=0.01, neighbours=5).reader(context(pages, question(Probes(2, 4)), 512, tail))
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
    memo: dict[str, torch.Tensor] = {}
    first = Consensus().reader(context(pages, replace(question(probe), memo=memo)))
    second = Consensus().reader(context(pages, replace(question(probe, (9, 9, 9)), memo=memo)))
    again = Consensus().reader(context(pages, replace(question(probe), memo=memo)))
    assert probe.calls.count((1, 2, 3)) == 1
    assert len(probe.calls) == 4
    assert first.evidence is not None and second.evidence is not None and again.evidence is not None
    assert torch.equal(first.evidence, again.evidence)
    assert not torch.equal(first.evidence, second.evidence)


def test_a_corpus_keeps_the_empty_question_between_asks(engine: Engine) -> None:
    corpus = engine.ingest(TEXTS, progress=False)
    passes: list[int] = []
    hook = engine.attachment.model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    counts = []
    for asked in ("Who jumps?", "What keeps the keys?", "Who jumps?"):
        passes.clear()
        corpus.ask(asked, max_new_tokens=1)
        counts.append(len(passes))
    hook.remove()
    assert counts == [3, 2, 2], "the empty question, the question, the answer; then without the first"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_question_without_any_gain_reads_the_sink_once(share: float) -> None:
    """The question that is the empty one gains nothing anywhere; the sink's page must not be chosen as well."""
    pages, probe = corpus_of([70, 33]), Probes(2, 4)
    asked = Question((1, 2, 3), slice(0, 3), (1, 2, 3), probe, {})
    reader = Consensus(share=share).reader(context(pages, asked))
    assert reader.evidence is not None
    assert reader.evidence.sum() == 0
    layer = ContextLayer(0, pages)
    layer.update(torch.randn(1, 2, 3, DIM), torch.randn(1, 2, 3, DIM))
    addresses = reader.select(layer, torch.randn(1, 4, 3, DIM)).addresses.tolist()
    assert addresses == sorted(set(addresses))
    assert 0 not in reader.cited().tolist()


def test_pages_without_evidence_are_not_read_for_themselves() -> None:
    """Not even with share 0, by which every page would be strong enough; the sink's page has no evidence ever."""
    pages = corpus_of([64, 32])
    gain = torch.tensor([0.0, 0.4, 0.0, 0.9])
    assert Consensus(share=0, max_pages=9, neighbours=0).choose(pages, gain, 9).tolist() == [1, 3]
    assert Consensus(share=0, max_pages=9, neighbours=1).choose(pages, gain, 9).tolist() == [1, 2, 3]
    assert Consensus(share=0, max_pages=9).choose(pages, torch.zeros(4), 9).tolist() == []


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
