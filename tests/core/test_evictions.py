"""Corpora go down by least recent use when another needs their place, never one that is read; their answers stay the same."""

import gc
import shutil
import threading
from pathlib import Path

import pytest

from reattention_core import Corpus, Engine
from reattention_core.errors import CapacityError
from tests.core.test_tiers import DOCUMENTS, PAGE_BYTES, QUESTION, Make, make, on_a_cpu, tier

__all__ = ["make"]

ROOM = 60
"""Pages of the device's budget: one of these corpora takes 33, the index of one that lies below about 4."""


def parts(text: str) -> list[str]:
    """Documents of one length that no other corpus has."""
    return [f"{text} {i}: the warranty of device {i} lasts {i} years, says its manufacturer. " * 3 for i in range(8)]


def read(engine: Engine, text: str, name: str | None = None) -> Corpus:
    return engine.ingest(parts(text), name=name, progress=False)


def test_the_least_recently_used_goes_to_the_host_and_answers_as_before(make: Make) -> None:
    plain = {text: read(make(), text).ask(QUESTION).text for text in ("red", "green", "blue")}
    engine = make(device_bytes=ROOM * PAGE_BYTES)
    red = read(engine, "red")
    green = read(engine, "green")
    assert (tier(red), tier(green), engine.stats().corpora_evictions) == ("host", "device", 1)
    assert red.ask(QUESTION).text == plain["red"]
    blue = read(engine, "blue")
    assert (tier(red), tier(green), tier(blue)) == ("host", "host", "device")
    for corpus, text in ((red, "red"), (green, "green"), (blue, "blue")):
        assert corpus.ask(QUESTION).text == plain[text]
    found = engine.stats().bytes
    assert found["device"]["corpora"] + found["device"]["index"] <= ROOM * PAGE_BYTES
    assert found["host"]["corpora"] == red.pages.below.nbytes + green.pages.below.nbytes  # type: ignore[union-attr]


def test_use_is_a_question_not_age(make: Make) -> None:
    engine = make(device_bytes=75 * PAGE_BYTES)
    red, green = read(engine, "red"), read(engine, "green")
    assert (tier(red), tier(green)) == ("device", "device")
    red.ask(QUESTION)
    read(engine, "blue")
    assert (tier(red), tier(green)) == ("device", "host")


def test_one_that_a_question_reads_stays_and_the_new_one_goes_below(make: Make) -> None:
    engine = make(device_bytes=ROOM * PAGE_BYTES)
    red = read(engine, "red")
    stream = red.stream(QUESTION)
    green = read(engine, "green")
    assert (tier(red), tier(green)) == ("device", "host"), "it waits to be read"
    del green
    text = "".join(stream)
    blue = read(engine, "blue")
    assert (tier(red), tier(blue)) == ("host", "device")
    assert red.ask(QUESTION).text == text
    dropped = blue.stream(QUESTION)
    del dropped
    gc.collect()
    read(engine, "black")
    assert tier(blue) == "host", "nobody will read it"


def test_named_ones_go_on_to_the_disk_and_others_stay(make: Make) -> None:
    plain = read(make(), "red").ask(QUESTION).text
    engine = make(device_bytes=ROOM * PAGE_BYTES, host_bytes=60 * PAGE_BYTES)
    red = read(engine, "red", "red")
    green = read(engine, "green")
    assert (tier(red), tier(green)) == ("host", "device")
    blue = read(engine, "blue")
    assert (tier(red), tier(green), tier(blue)) == ("disk", "host", "device")
    assert engine.stats().corpora_evictions == 3
    assert engine.stats().bytes["disk"]["mapped"] > 0
    assert red.ask(QUESTION).text == plain
    with pytest.raises(
        CapacityError, match="tier host"
    ):  # green has no name: the host is full, and blue cannot go down
        read(engine, "black")
    assert [tier(one) for one in (red, green, blue)] == ["disk", "host", "device"], "nothing goes down in vain"
    red.add(DOCUMENTS[0])
    assert tier(red) in ("disk", "host")
    assert red.ask(QUESTION).text


@on_a_cpu
def test_without_a_host_tier_it_is_the_disk_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    plain = read(engine, "red", "red")
    text, size = plain.ask(QUESTION).text, plain.nbytes
    working = 473_088  # to read 64 tokens at a time, as an error of capacity says

    def free(device: object) -> int:
        held = engine.tiers.held(engine.tally.look()[1])
        return int((2.2 * size + working - held.device - held.index) / 0.95)

    monkeypatch.setattr("reattention_core.memory.free_bytes", free)
    green = read(engine, "green")
    assert (tier(plain), tier(green)) == ("device", "device")
    plain.ask(QUESTION)
    blue = read(engine, "blue", "blue")
    assert (tier(plain), tier(green), tier(blue)) == ("disk", "device", "device"), "green has no name"
    assert plain.ask(QUESTION).text == text


def test_what_was_changed_or_removed_on_disk_stays_in_memory(make: Make, tmp_path: Path) -> None:
    engine = make(device_bytes=ROOM * PAGE_BYTES, host_bytes=0)
    red = read(engine, "red", "red")
    text = red.ask(QUESTION).text
    make().open("red").add("A fox.")
    green = read(engine, "green", "green")
    assert (tier(red), tier(green)) == ("device", "disk"), "another process changed it"
    shutil.rmtree(tmp_path / "store" / "red")
    blue = read(engine, "blue", "blue")
    assert (tier(red), tier(blue)) == ("device", "disk")
    assert red.ask(QUESTION).text == text
    assert engine.stats().corpora_evictions == 0


def test_questions_from_many_threads_while_corpora_go_up_and_down_are_the_serial_answers(make: Make) -> None:
    engine = make(device_bytes=ROOM * PAGE_BYTES)
    names = ("red", "green")
    corpora = {name: read(engine, name) for name in names}
    expected = {name: corpora[name].ask(QUESTION).text for name in names}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(6):
            said = corpora[name].ask(QUESTION).text
            wrong.extend([f"{name}: {said}"] * (said != expected[name]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        read(engine, f"another {number}")
    for thread in threads:
        thread.join()
    assert wrong == []
