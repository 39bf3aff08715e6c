"""Where corpora go: the highest tier with room, with the same pages and answers in each; what has no room anywhere is refused."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from reattention_core import Config, Corpus, Engine, LongHeads, memory
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.stitched import underlying
from reattention_core.cache.tiered import TieredPages
from reattention_core.errors import CancelledError, CapacityError, InvalidConfigError
from tests.conftest import tiny_model

DOCUMENTS = [
    f"The warranty of device {i} lasts {i} years, says its manufacturer in {1950 + i}. " * (i % 4 + 1)
    for i in range(20)
]
QUESTION = "How long does the warranty of device 4 last?"
PAGE_BYTES = PAGE * 2 * 2 * (16 + 16) * 4
"""Of the tiny model: two layers of two key-value heads, 16 numbers a key and a value, float32."""

Make = Callable[..., Engine]

on_a_cpu = pytest.mark.parametrize("make", ["cpu"], indirect=True)
"""For what is otherwise where the host is not the device."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def make(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Make]:
    """Makes engines with settings, all over one store."""
    with ExitStack() as stack:

        def made(**settings: Any) -> Engine:
            config = Config(cache_dtype="float32", max_new_tokens=8, stop=(), ingest_tokens=64, **settings)
            model = tiny_model().to(request.param)
            return stack.enter_context(Engine(model, tokenizer, config, tmp_path / "store"))

        yield made


def tier(corpus: Corpus) -> str:
    return corpus.pages.tier if isinstance(corpus.pages, TieredPages) else "device"


def same(ours: Corpus, theirs: Corpus) -> None:
    """Every page, every document's place, an answer and its sources."""
    assert [d.start for d in ours.documents] == [d.start for d in theirs.documents]
    assert [d.document.text for d in ours.documents] == [d.document.text for d in theirs.documents]
    for layer in range(2):
        for one, other in zip(
            ours.pages.read(layer, 0, ours.pages.n_pages), theirs.pages.read(layer, 0, ours.pages.n_pages), strict=True
        ):
            assert (one.cpu() - other.cpu()).abs().max() < (1e-3 if torch.cuda.is_available() else 1e-5)
    answers = ours.ask(QUESTION), theirs.ask(QUESTION)
    assert answers[0].text == answers[1].text
    assert [s.quote for s in answers[0].sources] == [s.quote for s in answers[1].sources]


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({}, "c", "device"),
        ({"device_bytes": 1.0}, None, "device"),
        ({"device_bytes": 40 * PAGE_BYTES}, None, "host"),
        ({"device_bytes": 40 * PAGE_BYTES}, "c", "host"),
        ({"device_bytes": 40 * PAGE_BYTES, "host_bytes": 10}, "c", "disk"),
        ({"device_bytes": 40 * PAGE_BYTES, "host_bytes": 1e-12}, "c", "disk"),
    ],
    ids=str,
)
def test_a_corpus_goes_to_the_highest_tier_with_room(
    make: Make, settings: dict[str, Any], name: str | None, expected: str
) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = make(**settings)
    engine.prefixes.release()
    corpus = engine.ingest(DOCUMENTS, name=name, progress=False)
    assert tier(corpus) == expected
    same(corpus, plain)
    found = engine.stats().bytes
    size = plain.pages.n_pages * PAGE_BYTES
    whole = [found["device"]["corpora"], found["host"]["corpora"], found["disk"]["mapped"]]
    place = ["device", "host", "disk"].index(expected)
    assert size <= whole[place] < size * 1.2 and not any(whole[:place] + whole[place + 1 :])
    assert (found["device"]["index"] > 0) == (found["device"]["staged"] > 0) == (expected != "device")
    if name is not None:
        same(engine.open(name), plain)
        on_cpu = engine.attachment.model.device.type == "cpu"
        where = "disk" if on_cpu and expected == "host" else expected
        assert tier(engine.open(name)) == where, "a CPU reads it where it is"


def test_what_is_on_the_device_of_a_corpus_below_is_what_was_planned(make: Make) -> None:
    engine = make(device_bytes=40 * PAGE_BYTES)
    corpus = engine.ingest(DOCUMENTS, progress=False)
    corpus.ask(QUESTION)
    planned = engine.tiers.index_bytes(corpus.pages.n_pages)
    sink = PAGE_BYTES + 2 * 8
    assert engine.stats().bytes["device"]["index"] == planned + sink


def test_summaries_go_with_a_corpus(make: Make) -> None:
    rule = LongHeads.for_window(512)
    plain = make().ingest(DOCUMENTS, strategy=rule, progress=False)
    below = make(device_bytes=40 * PAGE_BYTES).ingest(DOCUMENTS, name="c", strategy=rule, progress=False)
    assert tier(below) == "host"
    for ours, theirs in zip(below.pages.summaries, plain.pages.summaries, strict=True):
        assert (ours - theirs).abs().max() < (1e-3 if torch.cuda.is_available() else 1e-5)
    same(below, plain)
    assert below.ask(QUESTION, strategy=rule).text == plain.ask(QUESTION, strategy=rule).text


def test_more_documents_follow_where_they_fit_and_the_corpus_is_one(make: Make) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = make(device_bytes=40 * PAGE_BYTES)
    for name in (None, "c"):
        corpus = engine.ingest(DOCUMENTS[:3], name=name, progress=False)
        assert tier(corpus) == "device"
        corpus.add(DOCUMENTS[3:])
        assert tier(corpus) == "host"
        same(corpus, plain)
    same(engine.open("c"), plain)


def test_the_next_ingest_of_a_corpus_below_reads_nothing_again(make: Make) -> None:
    engine = make(device_bytes=40 * PAGE_BYTES, host_bytes=0)
    first = engine.ingest(DOCUMENTS, name="c", progress=False)
    read = engine.stats().tokens_read
    again = engine.ingest(DOCUMENTS, name="d", progress=False)
    assert engine.stats().tokens_read == read
    same(again, first)


def test_without_room_in_any_tier_the_error_names_them_with_what_is_needed_and_free(make: Make) -> None:
    engine = make(device_bytes=40 * PAGE_BYTES, host_bytes=1000)
    n_pages = make().ingest(DOCUMENTS, progress=False).pages.n_pages
    with pytest.raises(CapacityError) as caught:
        engine.ingest(DOCUMENTS, progress=False)
    said = str(caught.value)
    for part in ("tier device", "tier host", "tier disk", f"{n_pages * PAGE_BYTES:,}", f"{40 * PAGE_BYTES:,}", "1,000"):
        assert part in said
    with pytest.raises(CapacityError, match="tier device"):
        engine.ingest(DOCUMENTS, mode="joint", name="c", progress=False)
    with pytest.raises(CapacityError, match="index"):
        make(device_bytes=100).ingest(DOCUMENTS, name="c", progress=False)
    assert engine.store.names() == []
    assert tier(engine.ingest(DOCUMENTS, name="c", progress=False)) == "disk"


def test_a_share_is_of_what_is_free_when_the_engine_is_made(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 30)
    assert make(device_bytes=0.25, host_bytes=0.5).stats().corpora_bytes_limit == {"device": 1 << 28, "host": 1 << 29}
    assert make().stats().corpora_bytes_limit == {"device": None, "host": None}


@pytest.mark.parametrize("value", [-1, 0.0, 1.5, "0.5", True, float("nan")], ids=repr)
def test_what_is_no_budget_is_refused(value: Any) -> None:
    for name in ("device_bytes", "host_bytes"):
        with pytest.raises(InvalidConfigError, match=name):
            Engine.from_pretrained("no-model", **{name: value})


@on_a_cpu
def test_a_corpus_opened_with_less_memory_than_it_takes_gets_an_index(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without budgets: what fits the memory is read where it is mapped, what does not only where it must be."""
    plain = make().ingest(DOCUMENTS, name="c", progress=False)
    engine = make()
    assert tier(engine.open("c")) == "device"
    free = plain.nbytes
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    opened = engine.open("c")
    assert tier(opened) == "disk"
    monkeypatch.undo()
    same(opened, plain)
    assert torch.equal(opened.pages.filled, plain.pages.filled)


@pytest.mark.parametrize("host_bytes", [1.0, 0], ids=["host", "disk"])
@pytest.mark.parametrize("stopped", ["cancelled", "out of memory"])
def test_reading_into_a_lower_tier_that_is_broken_off_leaves_nothing_in_memory_and_goes_on(
    make: Make, host_bytes: Any, stopped: str
) -> None:
    engine = make(device_bytes=40 * PAGE_BYTES, host_bytes=host_bytes)
    engine.ingest("A fox.", progress=False).ask("Who?")  # heads are examined
    alive = pages_alive()
    asked = iter(range(1000))
    layer = engine.attachment.model.base_model.layers[-1].mlp
    if stopped == "cancelled":
        with pytest.raises(CancelledError):
            engine.ingest(DOCUMENTS, name="c", progress=False, cancelled=lambda: next(asked) > 10)
    else:

        def fail(*_: Any) -> None:
            if next(asked) > 10:
                raise torch.OutOfMemoryError("tried to allocate 20 MiB")

        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(CapacityError, match="20 MiB"):
            engine.ingest(DOCUMENTS, name="c", progress=False)
        hook.remove()
    assert pages_alive() <= alive
    read = engine.stats().tokens_read
    corpus = engine.ingest(DOCUMENTS, name="c", progress=False)
    assert 0 < engine.stats().tokens_read - read < corpus.n_tokens, "what was durable is not read again"
    same(corpus, make().ingest(DOCUMENTS, progress=False))


def pages_alive() -> int:
    gc.collect()
    return sum(issubclass(type(one), Pages) for one in gc.get_objects())


@pytest.mark.parametrize(
    ("host_bytes", "name", "stages"),
    [(1.0, None, ["host", "device"]), (0, "c", ["disk", "host", "device"])],
    ids=["host", "disk"],
)
def test_what_went_down_comes_up_again_where_there_is_room(
    make: Make, host_bytes: Any, name: str | None, stages: list[str]
) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = make(device_bytes=40 * PAGE_BYTES, host_bytes=host_bytes)
    other = engine.ingest(DOCUMENTS[:3], progress=False)
    corpus = engine.ingest(DOCUMENTS, name=name, progress=False)
    assert not corpus.promote() and tier(corpus) == stages[0]
    for stage in stages[1:]:
        engine.tiers.limits["host" if stage == "host" else "device"] = 1 << 30
        if stage == "host":
            engine.tiers.limits["device"] = 40 * PAGE_BYTES
        stream = corpus.stream(QUESTION)
        assert not corpus.promote(), "a question waits to read it"
        "".join(stream)
        assert corpus.promote() and tier(corpus) == stage
        same(corpus, plain)
    assert not corpus.promote()
    assert engine.tiers.evictions == 0 and tier(other) == "device"


@pytest.mark.gpu
@pytest.mark.parametrize("make", ["cuda"], indirect=True)
def test_a_gpu_reads_every_piece_of_an_edited_corpus_where_it_lies(make: Make) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    corpus = make(device_bytes=40 * PAGE_BYTES).ingest(DOCUMENTS, progress=False)
    ids = [d.document.id for d in corpus.documents]
    for one in (corpus, plain):
        one.add("The warranty of device 44 lasts 44 years.", progress=False)
        one.remove(ids[3])
    same(corpus, plain)
    assert len(underlying(corpus.pages)) > 1 and all(own.pinned for own in underlying(corpus.pages))
    for one in (corpus, plain):
        one.remove(ids[4:])
    same(corpus, plain)
    assert all(own.pinned for own in underlying(corpus.pages)), "what was copied together too"


@pytest.mark.gpu
@pytest.mark.parametrize("make", ["cuda"], indirect=True)
def test_what_goes_down_leaves_the_memory_of_a_gpu_before_anything_is_read(make: Make) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = make(device_bytes=1 << 40)
    corpus = engine.ingest(DOCUMENTS, progress=False)
    corpus.ask(QUESTION)  # records passes, which hold pages
    engine.tiers.limits["device"] = corpus.nbytes + 4 * PAGE_BYTES
    gc.collect()
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        hold, seen = corpus.nbytes, []
        hook = engine.attachment.model.base_model.register_forward_pre_hook(
            lambda *_: seen.append(torch.cuda.memory_allocated())
        )
        for one in (corpus, plain):
            one.add([f"{text}And more." for text in DOCUMENTS[:6]], progress=False)
        hook.remove()
    finally:
        gc.enable()
    assert tier(corpus) == "host"
    assert seen[0] < before - hold // 4
    same(corpus, plain)
