"""LongHeads' published rule, restated in plain loops and compared token for token with the library's reader."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from pydantic import PrivateAttr, ValidationError
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from reattention_core import Config, Corpus, Engine
from reattention_core.attention import Site, attention
from reattention_core.cache.kv_cache import ContextCache, ContextLayer
from reattention_core.cache.pages import Pages
from reattention_core.errors import InvalidConfigError, InvalidRequestError
from reattention_core.positions import Rotation
from reattention_core.select import Context, LongHeads, Reader, Selection
from tests.close import assert_close
from tests.core.families import FAMILIES, build

DIM = 8
SCALING = 0.6
Vectors = list[list[list[float]]]
"""[heads][tokens][D]"""


def turned(vector: list[float], place: int, theta: float = 10000.0) -> list[float]:
    """One vector rotated to a place: pairs (i, i + D/2), each by its own angle."""
    half = len(vector) // 2
    out = [0.0] * len(vector)
    for i in range(half):
        angle = place * theta ** (-i / half)
        out[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
        out[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
    return out


def attended(query: list[float], keys: list[list[float]], values: list[list[float]], scaling: float) -> list[float]:
    """Softmax attention of one query, in double precision."""
    scores = [scaling * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    exps = [math.exp(s - max(scores)) for s in scores]
    return [sum(e * v[d] for e, v in zip(exps, values, strict=True)) / sum(exps) for d in range(len(values[0]))]


def representation(query: Vectors, key: Vectors, value: Vectors, scaling: float) -> list[list[float]]:
    """Of one chunk, per query head: section 3.2 of arXiv 2402.10685."""
    out = []
    for head, own in enumerate(query):
        group = head * len(key) // len(query)
        keys = [turned(vector, place) for place, vector in enumerate(key[group])]
        outputs = [attended(turned(vector, i), keys, value[group], scaling) for i, vector in enumerate(own)]
        mean = [sum(column) / len(outputs) for column in zip(*outputs, strict=True)]
        out.append(attended(mean, keys, keys, scaling))
    return out


def chosen(rule: LongHeads, chunks: list[range], known: dict[int, list[float]], query: list[float], place: int):
    """Places that one head's query sees, rising; None where two chunks at the cut score within rounding.

    Args:
        rule: its parameters.
        chunks: places of every chunk's tokens.
        known: the head's representations of chunks.
        query: un-rotated.
        place: of the query.
    """
    own = next(i for i, chunk in enumerate(chunks) if place in chunk)
    scores = {}
    for i in range(1, own - 1):
        scores[i] = sum(a * b for a, b in zip(query, known[i], strict=True))
    ranked = sorted(scores, key=lambda i: (-scores[i], i))
    others = rule.attention_length // rule.chunk_size - 3
    if len(ranked) > others and scores[ranked[others - 1]] - scores[ranked[others]] < 1e-4:
        return None
    seen = {0, max(own - 1, 0), own, *ranked[:others]}
    return [p for i in sorted(seen) for p in chunks[i] if p <= place]


def cut(lengths: list[int], size: int) -> list[range]:
    """Chunks counted from the start of each text, as places in the whole sequence."""
    chunks, begin = [], 0
    for length in lengths:
        for start in range(begin, begin + length, size):
            chunks.append(range(start, min(start + size, begin + length)))
        begin += length
    return chunks


def embedding(x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(n)[:, None] * 10000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
    angles = torch.cat([angles, angles], -1)[None]
    return angles.cos(), angles.sin()


ROTATION = Rotation(apply_rotary_pos_emb, embedding, DIM)


def context(pages: Pages | None = None, window: int = 512) -> Context:
    return Context(window, 100, [SCALING], [ROTATION], pages)


class Text:
    """Random queries, keys and values of one text, and its chunks' representations by the slow rule."""

    def __init__(self, length: int, size: int, heads: int, groups: int, all_chunks: bool) -> None:
        self.query = torch.randn(heads, length, DIM)
        self.key, self.value = torch.randn(groups, length, DIM), torch.randn(groups, length, DIM)
        self.representations = []
        for start in range(0, length if all_chunks else length // size * size, size):
            part = slice(start, start + size)
            vectors = (t[:, part].tolist() for t in (self.query, self.key, self.value))
            self.representations.append(representation(*vectors, SCALING))


def pages_of(texts: list[Text], rule: LongHeads, heads: int, groups: int) -> tuple[Pages, list[int]]:
    """Pages as ingest would leave them, NaN where no token is, and the address of every token."""
    first: list[int] = []
    filled: list[int] = []
    for text in texts:
        n = text.key.shape[1]
        first += [len(first)] * -(-n // 32)
        filled += [32] * (n // 32) + [n % 32] * (n % 32 > 0)
    tables = torch.tensor(first), torch.tensor(filled)
    pages = Pages.allocate([(groups, DIM, DIM)], *tables, torch.float32, torch.device("cpu"))
    pages.reserve_summaries([(heads, DIM)], rule.summary_size)
    for tensor in (*pages.keys, *pages.values):
        tensor.fill_(float("nan"))
    addresses, start = [], 0
    for text in texts:
        n = text.key.shape[1]
        pages.write(0, torch.tensor([start]), torch.tensor([n]), text.key[None], text.value[None])
        pages.summarise(0, start, rule.summarise(text.query, text.key, text.value, ROTATION, SCALING))
        addresses += [start + i for i in range(n)]
        start += -(-n // 32) * 32
    return pages, addresses


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (3, 1)])
@pytest.mark.parametrize("n", [1, 31, 32, 63])
def test_a_chunks_representation(n: int, heads: int, groups: int) -> None:
    text = Text(n, 64, heads, groups, all_chunks=True)
    ours = LongHeads(chunk_size=64).summarise(text.query, text.key, text.value, ROTATION, SCALING)
    assert_close("representation", ours, torch.tensor(text.representations).transpose(0, 1), 1e-5)


@pytest.mark.parametrize(
    ("attention_length", "begin", "lengths", "tail", "batch"),
    [
        (128, 128, [], 290, 40),
        (192, 128, [], 300, 128),
        (128, 128, [], 290, 150),
        (128, 250, [], 300, 32),
        (256, 128, [], 330, 7),
        (128, 128, [32, 200], 120, 50),
        (160, 160, [32, 40, 97, 5, 64], 70, 33),
        (128, 330, [32, 230], 100, 25),
        (128, 128, [32], 140, 1),
    ],
)
def test_the_published_rule(attention_length: int, begin: int, lengths: list[int], tail: int, batch: int) -> None:
    """Every head's and every query's window; reading in whole until `begin` tokens."""
    heads, groups = 4, 2
    rule = LongHeads(
        chunk_size=32, attention_length=attention_length, begin_selective_length=begin, encoding_batch_size=batch
    )
    texts = [Text(n, 32, heads, groups, all_chunks=True) for n in lengths]
    new = Text(tail, 32, heads, groups, all_chunks=False)
    pages, addresses = pages_of(texts, rule, heads, groups) if texts else (None, [])
    layer, reader = ContextLayer(0, pages), rule.reader(context(pages))
    assert reader.chunk == batch
    below = len(addresses)
    chunks = cut([*lengths, tail], 32)
    representations = [r for text in [*texts, new] for r in text.representations]
    sequence = addresses + [layer.n_slots + i for i in range(tail)]
    compared = undecided = 0
    for start in range(0, tail, batch):
        part = slice(start, start + batch)
        layer.update(new.key[None, :, part], new.value[None, :, part])
        selection = reader.select(layer, new.query[None, :, part])
        if below + layer.n_tail <= begin:
            assert (selection.addresses.tolist(), selection.tail_from) == (addresses, 0)
            continue
        assert selection.addresses.shape[:2] == new.query[:, part].shape[:2]
        assert selection.addresses.shape[2] <= attention_length
        for head in range(heads):
            known = {i: r[head] for i, r in enumerate(representations)}
            for row, query in enumerate(new.query[head, part].tolist()):
                places = chosen(rule, chunks, known, query, below + start + row)
                if places is None:
                    undecided += 1
                    continue
                compared += 1
                window = [sequence[place] for place in places]
                padding = selection.addresses.shape[2] - len(window)
                assert selection.addresses[head, row].tolist() == [-1] * padding + window
    assert compared > 100 * (undecided + 1)


def test_a_chunk_chosen_more_often_is_better_evidence_of_its_pages() -> None:
    """Each choice of each head and query counts; the first chunk and the last are always seen and say nothing."""
    rule = LongHeads(chunk_size=64, attention_length=256, begin_selective_length=64, encoding_batch_size=20)
    texts = [Text(n, 64, 4, 2, all_chunks=True) for n in (32, 150, 64, 40)]
    pages, addresses = pages_of(texts, rule, 4, 2)
    layer, reader = ContextLayer(0, pages), rule.reader(context(pages))
    chunks = cut([32, 150, 64, 40], 64)
    expected = [0.0] * pages.n_pages
    for _ in range(3):
        layer.update(torch.randn(1, 2, 20, DIM), torch.randn(1, 2, 20, DIM))
        selection = reader.select(layer, torch.randn(1, 4, 20, DIM))
        for window in selection.addresses.flatten(0, 1).tolist():
            for chunk in chunks[1:-1]:
                if addresses[chunk[0]] in window:
                    for page in {addresses[place] // 32 for place in chunk}:
                        expected[page] += 1
    assert reader.evidence is not None
    assert reader.evidence.tolist() == expected
    assert sum(expected) > 0


class Watching(Reader):
    """Reads as another reader does and keeps what was asked and what was selected, layer by layer."""

    def __init__(self, inner: Reader) -> None:
        self.inner, self.chunk = inner, inner.chunk
        self.queries: dict[int, list[torch.Tensor]] = {}
        self.selections: dict[int, list[Selection]] = {}

    @property
    def evidence(self) -> torch.Tensor | None:
        return self.inner.evidence

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        self.queries.setdefault(layer.index, []).append(query)
        self.selections.setdefault(layer.index, []).append(self.inner.select(layer, query))
        return self.selections[layer.index][-1]


class Watched(LongHeads):
    """The rule, watched; an instance of it is a strategy like any other."""

    _readers: list[Watching] = PrivateAttr(default_factory=list)

    def reader(self, context: Context) -> Reader:
        self._readers.append(Watching(super().reader(context)))
        return self._readers[-1]


@pytest.mark.parametrize("lengths", [[], [32, 100]])
def test_each_query_attends_to_its_own_tokens_at_consecutive_positions(lengths: list[int]) -> None:
    rule = LongHeads(chunk_size=32, attention_length=128, begin_selective_length=128, encoding_batch_size=70)
    texts = [Text(n, 32, 4, 2, all_chunks=True) for n in lengths]
    pages, addresses = pages_of(texts, rule, 4, 2) if texts else (None, [])
    reader = Watching(rule.reader(context(pages)))
    cache = ContextCache(1, reader, 128, pages)
    module = SimpleNamespace(_reattention=Site(ROTATION, None, cache=cache), layer_idx=0)
    new = Text(210, 32, 4, 2, all_chunks=False)
    for part in (slice(0, 70), slice(70, 140), slice(140, 210)):
        query, key, value = new.query[None, :, part], new.key[None, :, part], new.value[None, :, part]
        cache.layers[0].update(key, value)
        out, _ = attention(module, query, key, value, None, SCALING)
    keys = torch.cat([text.key for text in [*texts, new]], 1).tolist()
    values = torch.cat([text.value for text in [*texts, new]], 1).tolist()
    sequence = addresses + [cache.layers[0].n_slots + i for i in range(210)]
    for head in range(4):
        for row in range(0, 70, 9):
            window = [sequence.index(a) for a in reader.selections[0][-1].addresses[head, row].tolist() if a >= 0]
            assert window[-1] == len(sequence) - 70 + row
            rotated = [turned(keys[head // 2][place], i) for i, place in enumerate(window)]
            query = turned(new.query[head, 140 + row].tolist(), len(window) - 1)
            expected = attended(query, rotated, [values[head // 2][place] for place in window], SCALING)
            assert_close("attention", out[0, row, head], torch.tensor(expected), 1e-5)


def test_joint_ingest_of_one_document_and_a_question_to_it_follow_the_rule(engine: Engine) -> None:
    rule = Watched(chunk_size=32, attention_length=128, begin_selective_length=128, encoding_batch_size=50)
    corpus = engine.ingest(
        "The quick brown fox jumps over the lazy dog. " * 18, mode="joint", strategy=rule, progress=False
    )
    (document,) = corpus.documents
    answer = corpus.ask("Who jumps over the lazy dog, and why?", strategy=rule, max_new_tokens=3)
    assert answer.usage.window_tokens <= 128
    assert answer.sources
    read, asked = rule._readers
    below, n_tail = 32 + document.n_tokens, answer.usage.prompt_tokens + 2
    assert below > 6 * 32 and n_tail < 32, "chunks to choose from, and none of the question's own"
    chunks = cut([32, document.n_tokens, n_tail], 32)
    addresses = corpus.pages.addresses.tolist()
    sequence = addresses + [corpus.pages.n_slots + i for i in range(n_tail)]
    compared = undecided = 0
    for index in range(2):
        query = torch.cat(read.queries[index], 2)[0]
        key, value = corpus.pages.gather(index, corpus.pages.addresses[32:])
        ours = corpus.pages.summaries[index]
        known: list[dict[int, list[float]]] = [{} for _ in range(4)]
        for i, chunk in enumerate(chunks[1:-1]):
            part = slice(chunk.start - 32, chunk.stop - 32)
            parts = (t[:, part].tolist() for t in (query, key, value))
            slow = representation(*parts, engine.attachment.scaling[index])
            assert_close("representation", ours[:, i + 1], torch.tensor(slow), 1e-4)
            for head in range(4):
                known[head][i + 1] = slow[head]
        for reader, first in ((read, 32), (asked, below)):
            place = first
            for queries, selection in zip(reader.queries[index], reader.selections[index], strict=True):
                for row in range(queries.shape[2]):
                    if selection.addresses.dim() == 1:
                        assert place < 128
                    for head in range(4 if selection.addresses.dim() == 3 else 0):
                        places = chosen(rule, chunks, known[head], queries[0, head, row].tolist(), place)
                        window = [a for a in selection.addresses[head, row].tolist() if a >= 0]
                        assert len(window) <= 128
                        compared, undecided = compared + 1, undecided + (places is None)
                        assert places is None or window == [sequence[p] for p in places]
                    place += 1
    assert compared > 50 * (undecided + 1)


def test_ingest_gives_the_rule_the_documents_own_unrotated_queries(engine: Engine) -> None:
    """In the first layer they follow from the token alone, so they can be worked out from the weights."""
    given: list[torch.Tensor] = []

    class Noting(LongHeads):
        def summarise(self, query: torch.Tensor, *rest: Any) -> torch.Tensor:
            given.append(query)
            return super().summarise(query, *rest)

    rule = Noting(chunk_size=32, attention_length=128, begin_selective_length=128)
    texts = ["The quick brown fox jumps. " * 9, "A cache keeps the keys and the values. " * 3]
    for mode in ("independent", "joint"):
        given.clear()
        corpus = engine.ingest(texts, mode=mode, strategy=rule, progress=False)
        model = engine.attachment.model.model
        layer = model.layers[0]
        for document in corpus.documents:
            ids = torch.tensor(engine.tokens.encode_documents([document.document])[0].ids)
            with torch.inference_mode():
                query = layer.self_attn.q_proj(layer.input_layernorm(model.embed_tokens(ids)))
            expected = query.unflatten(-1, (4, 16)).transpose(0, 1)
            (own,) = [q for q in given if q.shape == expected.shape and torch.allclose(q, expected, atol=1e-4)]
            assert_close("queries", own, expected, 1e-5)


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_no_window_is_wider_than_the_attention_length(engine: Engine, mode: Literal["independent", "joint"]) -> None:
    rule = Watched(chunk_size=32, attention_length=160, begin_selective_length=160, encoding_batch_size=33)
    texts = ["The quick brown fox jumps over the lazy dog. " * n for n in (1, 9, 4)]
    corpus = engine.ingest(texts, mode=mode, strategy=rule, progress=False)
    for question in ("Who jumps?", "Who jumps over the dog? " * 12):
        assert corpus.ask(question, strategy=rule, max_new_tokens=2).usage.window_tokens <= 160
    selections = [s for reader in rule._readers for layer in reader.selections.values() for s in layer]
    assert max(s.addresses.shape[2] for s in selections if s.addresses.dim() == 3) <= 160


def test_parameters_are_the_published_ones() -> None:
    """The paper's for a model trained on 4,096 tokens."""
    assert LongHeads().model_dump() == {
        "chunk_size": 256,
        "attention_length": 4096,
        "begin_selective_length": 4096,
        "encoding_batch_size": 128,
    }
    assert LongHeads.for_window(4096) == LongHeads()


@pytest.mark.parametrize("values", [dict(chunk_size=33), dict(chunk_size=300), dict(attention_length=1100)])
def test_parameters_that_cut_a_page_or_a_chunk_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="multiple"):
        LongHeads(**values)


def test_fewer_than_four_chunks_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least four times as long, got 768"):
        LongHeads(attention_length=768)


@pytest.mark.parametrize("name", ["attention_length", "begin_selective_length"])
def test_parameters_too_wide_for_the_model_are_refused_with_the_numbers(name: str) -> None:
    rule = LongHeads(chunk_size=32, **{"attention_length": 128, "begin_selective_length": 128, name: 1024})
    with pytest.raises(InvalidConfigError, match=r"1024 tokens, the model was trained on 512: .*for_window\(512\)"):
        rule.reader(context(window=512))


def test_parameters_for_a_window_fit_it() -> None:
    for window in range(128, 20_000):
        rule = LongHeads.for_window(window)
        assert rule.attention_length <= window
        assert rule.begin_selective_length <= window
        assert rule.attention_length > window * 3 // 4 or rule == LongHeads()


@pytest.mark.parametrize("window", [64, 127])
def test_a_window_too_small_for_four_chunks_is_refused_as_the_callers_error(window: int) -> None:
    with pytest.raises(InvalidConfigError, match=str(window)):
        LongHeads.for_window(window)


def test_a_corpus_without_representations_cannot_be_asked_this_way(engine: Engine) -> None:
    corpus: Corpus = engine.ingest("The quick brown fox jumps.", progress=False)
    with pytest.raises(InvalidRequestError, match="strategy='longheads'"):
        corpus.ask("Who jumps?", strategy="longheads")


def test_values_narrower_than_keys_are_refused_as_the_callers_error(tokenizer: PreTrainedTokenizerFast) -> None:
    """A chunk's mean output is compared with its keys, which the rule has no way to do where their sizes differ."""
    model = build("mimo_v2_flash", FAMILIES["mimo_v2_flash"] | dict(vocab_size=512))
    with Engine(model, tokenizer, Config(stop=())) as engine, pytest.raises(InvalidRequestError):
        engine.ingest("The quick brown fox jumps.", strategy="longheads", progress=False)
