"""A corpus that the device holds once but not twice: nothing is read before it is known where all of it will lie.

On a CPU pages are read where they lie, so that nothing need be copied; here the engine is told otherwise, and what is free is
what the test says.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reattention_core import Corpus, Engine
from reattention_core.cache.pages import PAGE
from reattention_core.cache.tiered import TieredPages
from reattention_core.errors import CapacityError, QueueFullError
from reattention_core.tiers import CPU
from tests.core.test_tiers import DOCUMENTS, QUESTION, Make, make, on_a_cpu, same, tier

__all__ = ["make"]

pytestmark = on_a_cpu

WORKING = 473_088
"""Bytes to read 64 tokens at a time."""

MORE = "The warranty of device 44 lasts 44 years."


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Has an engine's device hold so many bytes of corpora, beside what reading takes."""

    def limit(engine: Engine, size: float) -> Engine:
        def free(device: object) -> int:
            if device is CPU:  # the host's memory, not where the model runs
                return 1 << 40
            held = engine.tiers.held(engine.tally.look()[1])
            return int((size + WORKING - held.device - held.index) / 0.95) + 100

        engine.prefixes.release()
        engine.tiers.copies = True
        monkeypatch.setattr("reattention_core.memory.free_bytes", free)
        return engine

    yield limit


def engine_with(make: Make, host: bool) -> Engine:
    return make(device_bytes=1 << 40, host_bytes=1 << 40 if host else 0)


def edits(corpus: Corpus) -> list[object]:
    """Every kind of edit."""
    ids = [d.document.id for d in corpus.documents]
    return [
        lambda: corpus.add(MORE, progress=False),
        lambda: corpus.remove(ids[0]),
        lambda: corpus.reorder(ids[2:4]),
    ]


@pytest.mark.parametrize("number", range(3), ids=["add", "remove", "reorder"])
@pytest.mark.parametrize(
    ("times", "host", "name", "expected"),
    [
        (2.3, True, None, "device"),
        (1.3, True, None, "host"),
        (1.3, True, "c", "host"),
        (1.3, False, "c", "disk"),
    ],
)
def test_an_edit_of_what_cannot_exist_twice_is_made_below(
    make: Make, limited: object, times: float, host: bool, name: str | None, expected: str, number: int
) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = engine_with(make, host)
    corpus = engine.ingest(DOCUMENTS, name=name, progress=False)
    limited(engine, times * corpus.nbytes)  # type: ignore[operator]
    before = weakref.ref(corpus.pages)
    for one in (corpus, plain):
        edits(one)[number]()  # type: ignore[operator]
    assert tier(corpus) == expected
    same(corpus, plain)
    if expected == "disk":
        assert before() is None, "what went down is let go of at once"
        same(make().open("c"), plain)


@pytest.mark.parametrize("number", range(3), ids=["add", "remove", "reorder"])
def test_what_has_no_place_is_refused_before_anything_is_read(make: Make, limited: object, number: int) -> None:
    engine = engine_with(make, host=False)
    corpus, other = engine.ingest(DOCUMENTS, progress=False), engine.ingest("A fox.", progress=False)
    text, read = corpus.ask(QUESTION).text, 0
    limited(engine, 1.3 * corpus.nbytes)  # type: ignore[operator]
    model = engine.attachment.model.base_model

    def forward(*_: object) -> None:
        nonlocal read
        read += 1

    hook = model.register_forward_pre_hook(forward)
    with pytest.raises(CapacityError, match=r"(?s)tier device.*tier host.*tier disk") as caught:
        edits(corpus)[number]()  # type: ignore[operator]
    hook.remove()
    assert f"{engine.tiers.room('device'):,} may be taken" in str(caught.value)
    assert read == 0 and tier(corpus) == "device"
    assert corpus.ask(QUESTION).text == text and other.ask("Who?").text


def test_a_question_that_reads_what_goes_down_ends_over_it(make: Make, limited: object) -> None:
    engine = engine_with(make, host=True)
    corpus = engine.ingest(DOCUMENTS, progress=False)
    text = corpus.ask(QUESTION).text
    limited(engine, 1.3 * corpus.nbytes)  # type: ignore[operator]
    stream = corpus.stream(QUESTION)
    corpus.add(MORE, progress=False)
    assert tier(corpus) == "host"
    assert "".join(stream) == text


def test_what_was_read_does_not_wait_once_more_for_the_model(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might be refused there, with all the reading done."""
    engine, read = make(), False
    corpus = engine.ingest(DOCUMENTS, progress=False)
    busy = engine.busy

    def full(*given: Any) -> Any:
        if read:
            raise QueueFullError("full", waiting=1, limit=1)
        return busy(*given)

    def report(done: int, total: int) -> None:
        nonlocal read
        read = done == total

    monkeypatch.setattr(engine, "busy", full)
    corpus.add(MORE, progress=report)
    assert read and corpus.documents[-1].document.text == MORE


@pytest.mark.parametrize(("times", "expected"), [(2.7, "device"), (1.1, "host")])
def test_an_ingest_that_goes_on_from_what_is_saved_counts_both(
    make: Make, limited: object, times: float, expected: str
) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    make().ingest(DOCUMENTS[::2], name="half", progress=False)
    engine = engine_with(make, host=True)
    engine.trusted  # noqa: B018 (reading them takes memory of its own)
    limited(engine, times * plain.nbytes)  # type: ignore[operator]
    read = engine.stats().tokens_read
    corpus = engine.ingest(DOCUMENTS, name="all", progress=False)
    assert engine.stats().tokens_read - read == sum(d.n_tokens for d in plain.documents[1::2])
    below = isinstance(corpus.pages, TieredPages)
    assert below == (expected != "device")
    same(corpus, plain)


@pytest.mark.parametrize(
    ("times", "host", "expected"), [(2.3, True, "device"), (1.3, True, "host"), (1.3, False, None)]
)
def test_corpora_are_joined_where_all_of_them_have_room(
    make: Make, limited: object, times: float, host: bool, expected: str | None
) -> None:
    plain = make().ingest(DOCUMENTS, progress=False)
    engine = engine_with(make, host)
    halves = [engine.ingest(part, progress=False) for part in (DOCUMENTS[:10], DOCUMENTS[10:])]
    limited(engine, times * plain.nbytes)  # type: ignore[operator]
    if expected is None:
        with pytest.raises(CapacityError, match="tier host"):
            engine.join(*halves)
    else:
        joined = engine.join(*halves)
        assert tier(joined) == expected
        same(joined, plain)
    assert [tier(half) for half in halves] == ["device"] * 2


@pytest.mark.parametrize("what", ["engine", "edits", "joining"])
def test_memory_that_runs_out_all_the_same_is_our_error_and_leaves_other_corpora(
    make: Make, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    engine = make()
    corpus = engine.ingest(DOCUMENTS, progress=False)
    text = corpus.ask(QUESTION).text

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 1.46 GiB")

    monkeypatch.setattr(f"reattention_core.{what}.assembled", fail)
    calls = {
        "engine": lambda: engine.ingest("A fox.", progress=False),
        "edits": lambda: corpus.add("A fox.", progress=False),
        "joining": lambda: engine.join(corpus, corpus),
    }
    with pytest.raises(CapacityError, match=r"1\.46 GiB"):
        calls[what]()
    assert corpus.ask(QUESTION).text == text
    assert corpus.pages.n_slots == corpus.pages.n_pages * PAGE
