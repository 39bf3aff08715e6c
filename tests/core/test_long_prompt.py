"""Long prompts that ask something of a text: what is read once, what the model is shown, and what comes back."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Consensus, Document, Engine, texts
from reattention_core.errors import AnswerTimeoutError, CancelledError, ContextTooLongError
from reattention_core.prompts import build_prompt
from reattention_core.texts import Texts, cut
from tests.close import assert_close

PARAGRAPHS = [
    f"Device {i} was made in the year {1900 + i}. Its warranty lasts {i} months, says its manufacturer.\n\n"
    for i in range(44)
]
DOCUMENTS = "".join(PARAGRAPHS)
QUESTION = "How long is the warranty of device 27?"
HEAD, TAIL = "Context information is below.\n---------------------\n", "---------------------\nQuery: {}\nAnswer: "


PIECE = 800
BUDGET = 400_000


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that suit the tiny model's window."""
    monkeypatch.setattr(texts, "PIECE", PIECE)


def stuffed(documents: str = DOCUMENTS, question: str = QUESTION) -> str:
    return HEAD + documents + TAIL.format(question)


@pytest.fixture
def shown(engine: Engine) -> Iterator[list[str]]:
    """What the model was given to read, text by text: the pieces, the question, the prompt that is answered."""
    seen: list[str] = []

    def see(module: Any, args: Any) -> None:
        seen.append("|".join(engine.tokenizer.decode(row) for row in args[0]))

    hook = engine.attachment.model.get_input_embeddings().register_forward_pre_hook(see)
    yield seen
    hook.remove()


@pytest.mark.parametrize("form", ["text", "messages"])
def test_the_model_is_shown_the_prompt_with_passages_in_the_texts_place(
    engine: Engine, shown: list[str], form: str
) -> None:
    prompt: Any = stuffed() if form == "text" else [{"role": "user", "content": stuffed()}]
    answer = engine.generate(prompt)
    assert answer.sources
    quotes = [s.quote for s in sorted(answer.sources, key=lambda s: s.start)]
    expected = HEAD + "\n\n".join(quotes) + "\n\n" + TAIL.format(QUESTION)
    assert any((expected.strip() if form == "messages" else expected) in text for text in shown), "in one pass"
    assert answer.usage.window_tokens <= 512
    assert len(answer.text) > 0


def test_sources_are_places_in_the_message_by_falling_score(engine: Engine) -> None:
    messages = [{"role": "system", "content": f"Be brief.\n\n{DOCUMENTS}"}, {"role": "user", "content": QUESTION}]
    answer = engine.generate(messages, strategy=Consensus(max_passages=6))
    assert len(answer.sources) > 0
    for source in answer.sources:
        assert source.quote == messages[0]["content"][source.start : source.end]
        assert source.document_id == "prompt"
    scores = [source.score for source in answer.sources]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1 + 1e-6


def test_passages_are_those_of_the_corpus_route(engine: Engine) -> None:
    """The pieces as a corpus, ranked for the same question with the same room."""
    answer = engine.generate(stuffed())
    documents = DOCUMENTS.strip()
    pieces = [Document(text=documents[a:b], id=str(a)) for a, b in cut(documents)]
    corpus = engine.ingest(pieces, progress=False)
    prompt = build_prompt(engine.tokens, engine.config, QUESTION)
    question = corpus.edition.question(prompt, lambda: False)
    rest = len(engine.tokens.encode(stuffed("\n\n")).ids)
    room = (512 - 8 - rest) // 32 - 1
    rule = engine.selector(None)
    assert isinstance(rule, Consensus)
    with engine.busy():
        ranking = rule.rank(corpus.pages, question, engine.attachment.scaling, room)
    read = {p.document.id for p in corpus.documents for page in rule.choose(ranking, room).tolist() if owns(p, page)}
    found = {str(max(a for a, _ in cut(documents) if a + len(HEAD) <= source.start)) for source in answer.sources}
    assert found == read


def owns(document: Any, page: int) -> bool:
    first = document.start // 32
    return bool(first <= page < first + -(-document.n_tokens // 32))


def test_the_next_question_reads_only_itself(engine: Engine, shown: list[str]) -> None:
    first = engine.generate(stuffed(), max_new_tokens=1).usage
    alone = engine.generate(stuffed(question="Who made device 3?"), max_new_tokens=1)
    n = len(engine.tokens.encode(DOCUMENTS).ids)
    assert first.prompt_tokens > n
    assert alone.usage.prompt_tokens < 512 < alone.usage.cached_tokens
    assert alone.usage.cached_tokens >= n
    engine.prefixes.release()
    shown.clear()
    again = engine.generate(stuffed(question="Who made device 3?"), max_new_tokens=1)
    assert again.usage.prompt_tokens > n, "everything was forgotten"
    assert (again.text, again.sources) == (alone.text, alone.sources), "what was kept changes nothing"


def test_a_text_that_grew_is_read_where_it_differs(engine: Engine) -> None:
    def fresh(documents: str) -> int:
        with engine.texts.read(engine, documents, lambda: False) as (edition, n):
            assert "".join(d.document.text for d in edition.documents) == documents
            # The same pages as if read by itself, but for rounding: beside longer passages some processors add in another order.
            alone = Texts(engine.prefixes.kept)
            with alone.read(engine, documents, lambda: False) as (expected, all_of_it):
                assert all_of_it == expected.n_tokens
                for layer in range(edition.pages.n_layers):
                    assert_close(f"layer {layer}", edition.pages.scan(layer), expected.pages.scan(layer), 1e-5)
                assert torch.equal(edition.pages.filled, expected.pages.filled)
            return n

    whole = fresh(DOCUMENTS)
    more = fresh(DOCUMENTS + "One more device was made later. " * 9)
    assert 0 < more < whole / 1.5
    assert fresh(DOCUMENTS) == 0
    assert 0 < fresh("At the front. " + DOCUMENTS) <= whole + 20


def test_what_does_not_fit_is_read_as_a_sequence(engine: Engine) -> None:
    """A text to continue, the papers' rules, and a rest that leaves no room."""
    continued = "The quick brown fox jumps over the lazy dog. " * 60
    long_rest = [{"role": "user", "content": DOCUMENTS}, {"role": "user", "content": "Why? " * 60}]
    for prompt, rule in ((continued, None), (stuffed(), "reattention"), (long_rest, None)):
        answer = engine.generate(prompt, strategy=rule, max_new_tokens=1)
        assert answer.sources == []
        assert answer.usage.prompt_tokens > 512
        assert engine.texts._texts == {}


def test_a_prompt_that_fits_is_read_whole(engine: Engine) -> None:
    answer = engine.generate(stuffed(DOCUMENTS[:500]))
    assert answer.sources == [] and engine.texts._texts == {}


def test_limits_count_the_whole_prompt(engine: Engine, shown: list[str]) -> None:
    n = len(engine.tokens.encode(stuffed()).ids)
    with pytest.raises(ContextTooLongError) as caught:
        engine.generate(stuffed(), limit=n)
    assert (caught.value.n_tokens, caught.value.limit, shown) == (n + 8, n, [])


def test_an_answer_may_be_held_to_a_schema(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    answer = engine.generate(stuffed(question="Is it?"), schema=schema, max_new_tokens=24, repetition_penalty=1.1)
    assert answer.text.replace(" ", "") in ('{"x":true}', '{"x":false}')
    assert answer.sources


def test_pieces_joined_are_the_answer_and_stats_count_it_once(engine: Engine) -> None:
    whole = engine.generate(stuffed())
    stream = engine.stream(stuffed())
    assert "".join(stream) == whole.text == stream.answer.text
    stats = engine.stats()
    assert stats.requests["answered"] == 2
    assert stats.bytes["device"]["corpora"] == 0, "what is kept of texts counts with the prefixes"
    held = sum(entry.nbytes for entry in engine.texts._texts.values())
    assert 0 < held <= stats.bytes["device"]["prefixes"]
    assert stats.tokens_read == whole.usage.prompt_tokens + stream.answer.usage.prompt_tokens


def test_cancelling_and_deadlines_stop_the_reading_and_keep_nothing(engine: Engine, shown: list[str]) -> None:
    stream = engine.stream(stuffed())
    hook = engine.attachment.model.base_model.register_forward_pre_hook(lambda *_: stream.cancel())
    with pytest.raises(CancelledError):
        next(stream)
    hook.remove()
    assert len(shown) == 1
    wait = engine.attachment.model.base_model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    with pytest.raises(AnswerTimeoutError):
        engine.generate(stuffed(), timeout=0.1)
    wait.remove()
    assert engine.texts._texts == {} and engine.prefixes.kept.nbytes == 0
    assert engine.generate(stuffed()).sources


def test_many_at_once_read_a_text_once_and_get_the_serial_answers(engine: Engine) -> None:
    questions = [f"How long is the warranty of device {i}?" for i in (5, 20, 40)]
    serial = {q: engine.generate(stuffed(question=q)) for q in questions}
    engine.prefixes.release()
    before = engine.stats().tokens_read
    asked = questions * 3
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda q: engine.generate(stuffed(question=q)), asked))
    for question, answer in zip(asked, answers, strict=True):
        assert (answer.text, answer.sources) == (serial[question].text, serial[question].sources)
    n = len(engine.tokens.encode(DOCUMENTS).ids)
    read = [a.usage.prompt_tokens > n for a in answers]
    assert sum(read) == 1
    assert engine.stats().tokens_read - before == sum(a.usage.prompt_tokens for a in answers)


def test_a_small_budget_drops_texts_but_never_one_that_is_read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with Engine(model, tokenizer, Config(max_new_tokens=2, prefix_bytes=BUDGET), tmp_path) as engine:
        several = ["".join(PARAGRAPHS[i : i + 20]) for i in (0, 12, 24)]
        sizes = set()
        for text in several:
            with engine.texts.read(engine, text, lambda: False) as (edition, _):
                sizes.add(edition.pages.nbytes)
        assert max(sizes) < BUDGET < 2 * min(sizes), "one fits"
        assert len(engine.texts._texts) == 1
        with engine.texts.read(engine, several[2], lambda: False) as (edition, fresh):
            assert fresh == 0
            assert not engine.prefixes.kept.make_room(BUDGET)
            with engine.texts.read(engine, several[0], lambda: False) as (other, fresh):
                assert fresh > 0 and other.n_tokens == fresh
            assert len(engine.texts._texts) == 1, "there was no room for the other one"
        assert engine.prefixes.kept.make_room(BUDGET)
        assert engine.texts._texts == {}


WORDS = st.lists(
    st.sampled_from(["word ", "\n\n", "\n", "end. ", "x" * 700, "漢字" * 300, " " * 900, "é"]), min_size=1, max_size=60
).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=WORDS, more=WORDS)
def test_pieces_hold_all_of_a_text_and_agree_where_texts_do(text: str, more: str) -> None:
    pieces = cut(text)
    at = 0
    for start, stop in pieces:
        assert text[at:start].strip() == "" and 0 < stop - start <= PIECE
        at = stop
    assert text[at:].strip() == ""
    longer = cut(text + more)
    assert [piece for piece in pieces if piece[0] + PIECE < len(text)] == [
        p for p in longer if p[0] + PIECE < len(text)
    ]
