"""Documents become pages: what a document's keys depend on, what is refused beforehand, and what a failure leaves behind."""

import gc
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Corpus, Document, Engine, LongHeads, ReAttention, memory
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import (
    CancelledError,
    CapacityError,
    CorpusExistsError,
    CorpusNotFoundError,
    EmptyPromptError,
    InvalidConfigError,
    InvalidRequestError,
    UnreadableDocumentError,
)
from reattention_core.positions import Rotation
from reattention_core.select.fixed import Everything
from reattention_kernels.topk import WORKSPACE

WORDS = ("warranty", "device", "manufacturer", "period", "assistant", "cache", "token", "quick", "brown", "fox")


def text_of(n_words: int, seed: int) -> str:
    order = torch.randint(len(WORDS), (n_words,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[i] for i in order)


# One page exactly or a little more or less, and several pages; the last is shorter than a page.
TEXTS = [text_of(n, n) for n in (3, 10, 20, 75, 150, 1)]


@pytest.fixture
def short(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Engine]:
    """An engine whose chunks see 64 tokens of their document, so that a chunk has 32."""
    config = Config(cache_dtype="float32", reach=64, max_new_tokens=8, stop=())
    with Engine(model, tokenizer, config, tmp_path / "store") as made:
        yield made


@pytest.fixture
def passes(engine: Engine) -> list[tuple[int, ...]]:
    """The shape of every batch of ids that the model was given, in order."""
    shapes: list[tuple[int, ...]] = []
    engine.attachment.model.get_input_embeddings().register_forward_pre_hook(lambda m, a: shapes.append(a[0].shape))
    return shapes


@pytest.fixture
def passes_of_short(short: Engine) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    short.attachment.model.get_input_embeddings().register_forward_pre_hook(lambda m, a: shapes.append(a[0].shape))
    return shapes


def failing_at(engine: Engine, n: int, error: BaseException) -> Any:
    """From the n-th forward pass on (the first is 0) the last layer's feed-forward raises."""
    seen: list[None] = []

    def fail(*_: Any) -> None:
        seen.append(None)
        if len(seen) > n:
            raise error

    return engine.attachment.model.base_model.layers[-1].mlp.register_forward_hook(fail)


def keys_and_values(corpus: Corpus, number: int) -> list[torch.Tensor]:
    """Keys and values of one document in every layer, [G, n, D] each."""
    document = corpus.documents[number]
    tokens = slice(document.start, document.start + document.n_tokens)
    pages = corpus.pages
    return [layer.flatten(1, 2)[:, tokens] for layer in (*pages.keys, *pages.values)]


def plain_forward(engine: Engine, ids: list[int]) -> list[torch.Tensor]:
    """Keys and values of one ordinary pass over some tokens."""
    attachment = engine.attachment
    cache = ContextCache(len(attachment.shapes), Everything(), attachment.window)
    with torch.inference_mode():
        attachment.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    layers = cache.layers
    return [t.tokens[0] for t in (*(x.tail_keys for x in layers), *(x.tail_values for x in layers))]


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def left_over(tmp_path: Path) -> list[str]:
    """Every file in the store but its lock."""
    files = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and p.name != ".lock"]
    return sorted(str(p.relative_to(tmp_path)) for p in files)


def test_documents_of_unequal_length_read_together_have_the_keys_of_each_read_alone(
    engine: Engine, passes: list[tuple[int, ...]]
) -> None:
    together = engine.ingest(TEXTS, progress=False)
    assert max(shape[0] for shape in passes) == len(TEXTS)
    for number, text in enumerate(TEXTS):
        alone = engine.ingest(text, progress=False)
        assert worst(keys_and_values(together, number), keys_and_values(alone, 0)) < 1e-5


def test_a_document_longer_than_reach_has_the_same_keys_whatever_it_is_read_with(
    short: Engine, passes_of_short: list[tuple[int, ...]]
) -> None:
    texts = [text_of(n, n) for n in (70, 90, 150, 301)]
    together = short.ingest(texts, progress=False)
    assert max(shape[0] for shape in passes_of_short) == len(texts)
    for number, text in enumerate(texts):
        assert together.documents[number].n_tokens > 64
        alone = short.ingest(text, progress=False)
        assert worst(keys_and_values(together, number), keys_and_values(alone, 0)) < 1e-5


def test_a_document_does_not_see_the_others(engine: Engine) -> None:
    first = engine.ingest(TEXTS, progress=False)
    changed = engine.ingest([text_of(40, 99), *TEXTS[1:-1], text_of(200, 98)], progress=False)
    for number in range(1, len(TEXTS) - 1):
        assert worst(keys_and_values(first, number), keys_and_values(changed, number)) < 1e-5


@pytest.mark.parametrize("batch", [32, 200, 100_000])
def test_how_many_documents_are_read_at_once_changes_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, batch: int
) -> None:
    config = Config(cache_dtype="float32", ingest_tokens=batch)
    with Engine(model, tokenizer, config, tmp_path) as engine:
        corpus = engine.ingest(TEXTS, progress=False)
        for number, document in enumerate(corpus.documents):
            ids = engine.tokens.encode_documents([document.document])[0].ids
            expected = [x[:, PAGE:] for x in plain_forward(engine, engine.sink + ids)]
            assert worst(keys_and_values(corpus, number), expected) < 1e-5


def test_a_document_within_reach_is_read_by_one_plain_pass_behind_the_sink(engine: Engine) -> None:
    """In chunks of half the reach: 480 tokens at a window of 512."""
    corpus = engine.ingest(text_of(300, 5), progress=False)
    document = corpus.documents[0]
    assert 240 < document.n_tokens <= 480
    ids = engine.tokens.encode_documents([document.document])[0].ids
    expected = [x[:, PAGE:] for x in plain_forward(engine, engine.sink + ids)]
    assert worst(keys_and_values(corpus, 0), expected) < 1e-5


def test_the_first_page_is_the_sink_read_by_itself(engine: Engine) -> None:
    pages = engine.ingest(TEXTS, progress=False).pages
    sink = [layer[:, 0] for layer in (*pages.keys, *pages.values)]
    assert worst(sink, plain_forward(engine, engine.sink)) < 1e-5
    assert pages.filled[0] == PAGE


@pytest.mark.parametrize("words", [120, 900], ids=["longer than reach", "longer than the window"])
def test_a_long_document_is_read_at_positions_inside_the_window(
    short: Engine, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    ends: list[int] = []
    rotate = Rotation.__call__

    def noting(self: Rotation, x: torch.Tensor, start: int) -> torch.Tensor:
        ends.append(start + x.shape[2])
        return rotate(self, x, start)

    monkeypatch.setattr(Rotation, "__call__", noting)
    corpus = short.ingest(text_of(words, 1), progress=False)
    document = corpus.documents[0]
    assert document.n_tokens > (64 if words == 120 else 512)
    assert max(ends) == PAGE + 64
    ids = short.tokens.encode_documents([document.document])[0].ids
    near = [x[:, PAGE:] for x in plain_forward(short, short.sink + ids[:64])]
    assert worst([x[:, :64] for x in keys_and_values(corpus, 0)], near) < 1e-5
    assert all(layer.isfinite().all() for layer in keys_and_values(corpus, 0))
    assert corpus.pages.filled.sum() == PAGE + document.n_tokens
    assert corpus.ask("What is the warranty period?").text


def test_a_token_sees_its_document_as_far_back_as_reach_and_no_further(short: Engine) -> None:
    """Two layers: keys of the second depend on what the first one's attention saw."""
    plain = text_of(400, 3)
    one, other = (short.ingest(first + plain[1:], progress=False) for first in "XY")
    changed = [
        (a - b).abs().amax((0, 2)) > 1e-6
        for a, b in zip(keys_and_values(one, 0), keys_and_values(other, 0), strict=True)
    ]
    assert changed[1][20:64].any()
    assert not any(layer[64:].any() for layer in changed)


def test_joint_documents_that_fit_the_window_are_read_by_one_plain_pass(engine: Engine) -> None:
    wide = ReAttention(global_size=32, local_size=448, span=32, recall_clip=1, chunk_size=50)
    corpus = engine.ingest(TEXTS, mode="joint", strategy=wide, progress=False)
    ids = [i for d in corpus.documents for i in engine.tokens.encode_documents([d.document])[0].ids]
    assert len(ids) <= 448
    expected = [x[:, PAGE:] for x in plain_forward(engine, engine.sink + ids)]
    ours = [keys_and_values(corpus, number) for number in range(len(TEXTS))]
    assert worst([torch.cat(layer, 1) for layer in zip(*ours, strict=True)], expected) < 1e-5


def test_joint_documents_see_earlier_ones_and_not_later_ones(engine: Engine) -> None:
    read = {
        order: engine.ingest([TEXTS[i] for i in order], mode="joint", progress=False)
        for order in ((2, 3, 4), (1, 3, 4), (2, 3))
    }
    third = {order: keys_and_values(corpus, 1) for order, corpus in read.items()}
    assert worst(third[2, 3, 4], third[2, 3]) < 1e-5
    assert worst(third[2, 3, 4], third[1, 3, 4]) > 1e-3


@pytest.mark.parametrize("strategy", ["consensus", "reattention", "longheads"])
def test_joint_documents_beyond_the_window_are_read_and_can_be_asked(engine: Engine, strategy: str) -> None:
    corpus = engine.ingest([text_of(270, i) for i in range(3)], mode="joint", strategy=strategy, progress=False)
    assert corpus.n_tokens > 1.5 * engine.window
    assert all(layer.isfinite().all() for layer in (*corpus.pages.keys, *corpus.pages.values))
    answer = corpus.ask("What is the warranty period?", strategy=strategy)
    assert 0 < answer.usage.window_tokens <= engine.window


def test_what_longheads_keeps_of_a_document_does_not_depend_on_the_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # How much is rounded depends on what the sink says; with this one it stays within the bound.
    engine = Engine(model, tokenizer, Config(sink="Read.", cache_dtype="float32"), tmp_path)
    together = engine.ingest(TEXTS, strategy="longheads", progress=False).pages
    chunks = together.chunks(together.summary_size)
    rule = LongHeads.for_window(engine.window)
    for number, start in enumerate(lay_out([len(engine.tokens.encode(f"{t}\n\n").ids) for t in TEXTS]).starts):
        alone = engine.ingest(TEXTS[number], strategy=rule, progress=False).pages
        for ours, own in zip(together.summaries, alone.summaries, strict=True):
            first = int(chunks[start // PAGE])
            assert (ours[:, first : first + own.shape[1] - 1] - own[:, 1:]).abs().max() < 1e-5


def test_what_cannot_fit_is_refused_before_the_first_forward_pass(
    engine: Engine, passes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 123_456)
    with pytest.raises(CapacityError, match="123,456") as caught:
        engine.ingest(TEXTS, name="big", progress=False)
    assert caught.value.free == 123_456 < caught.value.needed
    assert f"{caught.value.needed:,}" in str(caught.value)
    assert passes == []
    assert left_over(tmp_path) == []
    monkeypatch.undo()
    assert engine.ingest(TEXTS, name="big", progress=False).ask("What is it?").text


def test_the_plan_asks_for_exactly_the_bytes_of_the_pages_and_more_to_read_them(engine: Engine) -> None:
    corpus = engine.ingest(TEXTS, progress=False)
    plan = memory.plan(engine.attachment, lay_out([d.n_tokens for d in corpus.documents]), torch.float32, 64)
    kept = sum(layer.nbytes for layer in (*corpus.pages.keys, *corpus.pages.values))
    assert plan.pages == kept == corpus.pages.n_pages * PAGE * 2 * 2 * (16 + 16) * 4
    assert corpus.nbytes == kept + 2 * 8 * corpus.pages.n_pages
    assert plan.working > 0
    assert plan.free > 1_000_000


def test_on_a_gpu_the_plan_knows_what_selecting_and_asking_take(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 40)
    few, many = lay_out([PAGE]), lay_out([PAGE] * 100_000)

    def working(*arguments: Any) -> int:
        return memory.plan(engine.attachment, *arguments).working

    on_cpu = working(few, torch.float32, 64, True)
    assert on_cpu == working(few, torch.float32, 64) == working(many, torch.float32, 64)
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
    assert working(few, torch.float32, 64, True) == on_cpu + WORKSPACE
    heads = engine.attachment.query_shapes[0][0]
    assert working(many, torch.float32, 64) > 100_000 * heads * 256 * 4, "a question's masses"


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("auto", 2)])
def test_pages_are_of_the_configured_type(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, dtype: Any, size: int
) -> None:
    with Engine(model, tokenizer, Config(cache_dtype=dtype), tmp_path) as engine:
        corpus = engine.ingest(TEXTS, progress=False)
        assert corpus.nbytes == corpus.pages.n_pages * (PAGE * 2 * 2 * (16 + 16) * size + 2 * 8)


@pytest.mark.parametrize("n", [0, 1, 3], ids=["sink", "first", "middle"])
def test_memory_that_runs_out_while_reading_is_a_capacity_error_and_a_smaller_ingest_works(
    short: Engine, tmp_path: Path, n: int
) -> None:
    hook = failing_at(short, n, torch.OutOfMemoryError("tried to allocate 20 MiB"))
    with pytest.raises(CapacityError, match=r"20 MiB.*ingest") as caught:
        short.ingest([text_of(300, 1), text_of(20, 2)], name="big", progress=False)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    hook.remove()
    assert left_over(tmp_path) == []
    with pytest.raises(CorpusNotFoundError):
        short.open("big")
    assert short.ingest(text_of(20, 2), name="big", progress=False).ask("What is it?").text


def test_memory_that_cannot_be_had_for_the_pages_is_a_capacity_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Pages:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(Pages, "allocate", full)
    with pytest.raises(CapacityError, match="20 GiB"):
        engine.ingest(TEXTS, progress=False)


def test_nothing_of_a_failed_ingest_stays_in_memory(engine: Engine) -> None:
    """A cache holds on to the pages below it."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("in the middle of a layer")

    def held() -> int:
        gc.collect()
        return sum(type(o) in (ContextCache, Pages) for o in gc.get_objects())

    before = held()
    hook = engine.attachment.model.base_model.layers[1].self_attn.o_proj.register_forward_pre_hook(fail)
    with pytest.raises((CapacityError, torch.OutOfMemoryError)):
        engine.ingest(TEXTS, progress=False)
    hook.remove()
    assert held() == before


def cancel_after(n: int) -> Callable[[], bool]:
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) > n

    return cancelled


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_a_cancelled_ingest_saves_nothing(
    short: Engine, passes_of_short: list[tuple[int, ...]], tmp_path: Path, mode: Any, n: int
) -> None:
    with pytest.raises(CancelledError):
        short.ingest(
            [text_of(300, i) for i in range(2)], name="c", mode=mode, progress=False, cancelled=cancel_after(n)
        )
    assert len(passes_of_short) == n
    assert left_over(tmp_path) == []
    with pytest.raises(CorpusNotFoundError):
        short.open("c")
    assert short.ingest(TEXTS, name="c", progress=False).ask("What is it?").text


def test_an_ingest_can_be_cancelled_while_another_request_has_the_model(engine: Engine) -> None:
    outcome: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(engine.ingest(TEXTS, progress=False, cancelled=lambda: True))
        except CancelledError as error:
            outcome.put(error)

    waiting = threading.Thread(target=run)
    with engine.busy():
        waiting.start()
        waiting.join(0.5)
        gave_up = not waiting.is_alive()
    waiting.join()
    assert gave_up
    assert isinstance(outcome.get_nowait(), CancelledError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("cublas")], ids=repr)
def test_what_interrupts_an_ingest_reaches_the_caller_and_nothing_is_saved(
    short: Engine, tmp_path: Path, error: BaseException
) -> None:
    kept = short.ingest("The warranty lasts two years.", name="kept", progress=False)
    expected, before = kept.ask("How long?").text, left_over(tmp_path)
    hook = failing_at(short, 3, error)
    with pytest.raises(type(error)) as caught:
        short.ingest(text_of(300, 1), name="lost", progress=False)
    assert caught.value is error
    hook.remove()
    assert left_over(tmp_path) == before
    assert kept.ask("How long?").text == expected == short.open("kept").ask("How long?").text
    assert short.ingest(text_of(300, 1), name="lost", progress=False).ask("How long?").text


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_progress_rises_to_the_number_of_tokens(short: Engine, mode: Any) -> None:
    seen: list[tuple[int, int]] = []
    texts = [*TEXTS, text_of(300, 1)]
    corpus = short.ingest(texts, mode=mode, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {corpus.n_tokens}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == corpus.n_tokens
    assert len({done for done, _ in seen}) > 5


def test_no_progress_is_written_where_there_is_no_terminal(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.ingest(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_unreadable_files_are_left_out_and_named(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.pdf"
    good.write_text("The warranty lasts two years.")
    bad.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    corpus = engine.ingest([good, bad], progress=False)
    assert [d.document.source for d in corpus.documents] == [str(good)]
    assert [error.path for error in corpus.skipped] == [str(bad)]
    assert str(bad) in caplog.text


def test_strict_raises_on_an_unreadable_file_before_anything_is_read(
    engine: Engine, passes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    with pytest.raises(UnreadableDocumentError) as caught:
        engine.ingest(["The warranty lasts two years.", bad], strict=True, progress=False)
    assert caught.value.path == str(bad)
    assert passes == []


@pytest.mark.parametrize("sources", [[], "", " \n\t", ["", "  "], [Document(text=" ")]], ids=repr)
def test_nothing_to_read_is_an_error(engine: Engine, sources: Any) -> None:
    with pytest.raises(EmptyPromptError):
        engine.ingest(sources, progress=False)


@pytest.mark.parametrize(
    "sources", [None, 5, b"bytes", {"a": "b"}, ["fine", 5], ["fine", None], "half \ud83d"], ids=repr
)
def test_what_is_no_document_is_an_error(engine: Engine, sources: Any) -> None:
    with pytest.raises(InvalidRequestError):
        engine.ingest(sources, progress=False)


def test_a_taken_name_is_refused_before_any_forward_pass(engine: Engine, passes: list[tuple[int, ...]]) -> None:
    kept = engine.ingest("The warranty lasts two years.", name="c", progress=False)
    expected, before = kept.ask("How long?").text, len(passes)
    with pytest.raises(CorpusExistsError, match=r"'c'.*replace=True"):
        engine.ingest(TEXTS, name="c", progress=False)
    assert len(passes) == before > 0
    assert engine.open("c").ask("How long?").text == expected


def test_replace_overwrites_and_the_old_one_still_answers(engine: Engine, tmp_path: Path) -> None:
    engine.ingest("The warranty lasts two years.", name="c", progress=False)
    old = engine.open("c")
    expected = old.ask("How long?").text
    new = engine.ingest(TEXTS, name="c", replace=True, progress=False)
    assert len(engine.open("c").documents) == len(TEXTS)
    assert engine.open("c").ask("How long?").text == new.ask("How long?").text
    assert old.ask("How long?").text == expected
    assert engine.store.names() == ["c"]


def test_a_bad_mode_is_refused_before_any_forward_pass(engine: Engine, passes: list[tuple[int, ...]]) -> None:
    with pytest.raises(InvalidConfigError, match="'jiont'"):
        engine.ingest(TEXTS, mode="jiont", progress=False)
    with pytest.raises(InvalidConfigError, match="did you mean 'longheads'"):
        engine.ingest(TEXTS, strategy="longhead", progress=False)
    assert passes == []


def test_a_document_that_comes_twice_is_read_once(engine: Engine) -> None:
    once = engine.ingest("The warranty lasts two years.", progress=False)
    twice = engine.ingest(["The warranty lasts two years."] * 2, progress=False)
    assert twice.n_tokens == once.n_tokens
    assert len(twice.documents) == 1


def test_documents_end_on_pages_of_their_own() -> None:
    layout = lay_out([1, PAGE, PAGE + 1, 3 * PAGE])
    assert layout.starts == (PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE)
    assert layout.first.tolist() == [0, 1, 2, 3, 3, 5, 5, 5]
