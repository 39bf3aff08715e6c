"""Many users of one model: who waits for whom, who is sent away, what a deadline ends, and that nobody's answer changes."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Consensus, Corpus, Document, Engine
from reattention_core.cache.pages import PAGE
from reattention_core.errors import (
    AnswerTimeoutError,
    CancelledError,
    EngineClosedError,
    InvalidConfigError,
    QueueFullError,
)
from reattention_core.frameworks.conversation import afinish
from reattention_core.turns import Turns

DOCUMENTS = [f"The warranty of device {i} lasts {i} years, says its manufacturer. " * (9 + i) for i in range(5)]
QUESTIONS = [f"What is the warranty period of device {i}?" for i in range(5)] + ["Who is the manufacturer?"]


def never() -> bool:
    return False


class Crowd:
    """Threads that want a turn, and the order in which they got it."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.order, self.errors = turns, list[str](), dict[str, BaseException]()
        self._threads: list[threading.Thread] = []

    def come(self, name: str, work: Callable[[Any], None] = lambda between: None, cancelled: Any = never) -> None:
        """Ask for a turn, and return once its place in the order is certain."""
        before = self.turns.waiting

        def run() -> None:
            try:
                with self.turns.turn(cancelled) as between:
                    self.order.append(name)
                    work(between)
            except BaseException as error:
                self.errors[name] = error

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()
        wait_for(lambda: self.turns.waiting > before or not thread.is_alive())

    def leave(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < until, "it did not come about"
        time.sleep(0.001)


def test_turns_come_in_the_order_they_were_asked_for() -> None:
    turns = Turns(9)
    crowd = Crowd(turns)
    with turns.turn(never):
        assert turns.running
        for name in "abcdef":
            crowd.come(name)
        assert turns.waiting == 6
        assert crowd.order == []
    crowd.leave()
    assert crowd.order == list("abcdef")
    assert not turns.running and turns.waiting == 0


def test_long_work_gives_way_to_all_who_wait_and_goes_on_behind_them() -> None:
    turns = Turns(9)
    crowd = Crowd(turns)
    with turns.turn(never) as between:
        assert not between()
        crowd.come("a")
        crowd.come("b")
        assert not between()
        assert crowd.order == ["a", "b"]
        crowd.order.append("long")
        crowd.come("c")
    crowd.leave()
    assert crowd.order == ["a", "b", "long", "c"]


def test_two_long_works_take_turns_step_by_step() -> None:
    turns = Turns(9)
    crowd = Crowd(turns)

    def long(name: str) -> Callable[[Callable[[], bool]], None]:
        def work(between: Callable[[], bool]) -> None:
            for _ in range(3):
                between()
                crowd.order.append(name)

        return work

    with turns.turn(never):
        crowd.come("A", long("a"))
        crowd.come("B", long("b"))
    crowd.leave()
    assert crowd.order == ["A", "B", *"ababab"]


def test_one_who_is_cancelled_leaves_the_queue_and_the_others_stay() -> None:
    turns, stop = Turns(9), threading.Event()
    crowd = Crowd(turns)
    with turns.turn(never):
        crowd.come("a")
        crowd.come("b", cancelled=stop.is_set)
        crowd.come("c")
        stop.set()
        wait_for(lambda: turns.waiting == 2)
    crowd.leave()
    assert crowd.order == ["a", "c"]
    assert isinstance(crowd.errors["b"], CancelledError)


def test_work_that_is_cancelled_while_it_gave_way_ends_and_holds_nobody_up() -> None:
    turns, stop, release = Turns(9), threading.Event(), threading.Event()
    crowd = Crowd(turns)

    def stops_the_other(between: Callable[[], bool]) -> None:
        stop.set()
        release.wait(10)

    with pytest.raises(CancelledError), turns.turn(stop.is_set) as between:
        crowd.come("a", stops_the_other)
        between()
    assert turns.running, "a still has it"
    release.set()
    crowd.come("b")
    crowd.leave()
    assert crowd.order == ["a", "b"]
    assert not turns.running


def test_a_failure_passes_the_turn_on() -> None:
    turns = Turns(9)
    crowd = Crowd(turns)
    with pytest.raises(KeyboardInterrupt), turns.turn(never):
        crowd.come("a")
        raise KeyboardInterrupt
    crowd.leave()
    assert crowd.order == ["a"]


def test_one_more_than_may_wait_is_sent_away_at_once_with_both_numbers() -> None:
    turns = Turns(2)
    crowd = Crowd(turns)
    with turns.turn(never) as between:
        for name in "abc":
            crowd.come(name)
        error = crowd.errors["c"]
        assert isinstance(error, QueueFullError)
        assert (error.waiting, error.limit, turns.refused) == (2, 2, 1)
        assert "2 requests wait for the model, and max_waiting allows 2: try again later" in str(error)
        between()  # gives way, and is not refused though it goes behind two
    crowd.leave()
    assert crowd.order == ["a", "b"]


def test_after_the_last_turn_who_waits_is_told_and_who_gave_way_too() -> None:
    turns = Turns(0)
    crowd = Crowd(turns)

    def close() -> None:
        with turns.last():
            pass

    closing = threading.Thread(target=close)
    with pytest.raises(EngineClosedError), turns.turn(never) as between:
        closing.start()  # waits although nobody may
        wait_for(lambda: turns.waiting == 1)
        between()
    closing.join(10)
    crowd.come("late")
    assert isinstance(crowd.errors["late"], EngineClosedError)
    assert turns.closed and not turns.running


def test_time_is_told_apart_in_waiting_and_having() -> None:
    turns = Turns(9)
    crowd = Crowd(turns)
    with turns.turn(never) as between:
        crowd.come("a", lambda _: time.sleep(0.2))
        time.sleep(0.1)
        between()
    crowd.leave()
    assert 0.3 <= turns.waited <= 0.6, "a waited 0.1 s, and the other one 0.2 s for a"
    assert 0.3 <= turns.ran <= 0.6


# --- an engine's users


@pytest.fixture
def made(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**config: Any) -> Engine:
        settings = Config(**{"cache_dtype": "float32", "max_new_tokens": 4, "stop": (), **config})
        engines.append(Engine(model, tokenizer, settings, tmp_path / "store"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


class Passes:
    """By thread, which ran the model; and a thread that comes in the middle of the pass numbered `at`."""

    def __init__(self, engine: Engine, at: int, come: Callable[[], Any]) -> None:
        self.threads, self._at, self._engine = list[threading.Thread](), at, engine
        self.result: Any = None
        self._come = threading.Thread(target=self._run, args=(come,))
        engine.attachment.model.base_model.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.threads.append(threading.current_thread())
        if len(self.threads) == self._at:
            self._come.start()
            wait_for(lambda: self._engine.turns.waiting == 1)

    def _run(self, come: Callable[[], Any]) -> None:
        self.result = come()

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Passes one after another by one thread: its name and how many."""
        return [(thread.name, len(list(passes))) for thread, passes in groupby(self.threads)]


def bits(corpus: Corpus) -> list[torch.Tensor]:
    pages = corpus.pages
    return [t.clone() for t in (*pages.keys, *pages.values, pages.filled, pages.first)]


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_a_question_during_a_long_ingest_waits_for_one_pass_and_neither_changes(
    made: Callable[..., Engine], mode: Any
) -> None:
    engine = made(reach=64, ingest_tokens=64)
    asked = engine.ingest(DOCUMENTS, progress=False)
    alone = asked.ask(QUESTIONS[2])
    long = [DOCUMENTS[3] * 2, "A cache keeps its keys and values. " * 12]
    expected = bits(engine.ingest(long, mode=mode, progress=False))
    passes = Passes(engine, 3, lambda: asked.ask(QUESTIONS[2]))
    corpus = engine.ingest(long, mode=mode, progress=False)
    here = threading.current_thread().name
    (ingest, three), (question, _), (again, rest) = passes.runs
    assert (ingest, three, question, again) == (here, 3, "reattention-generate", here)
    assert rest > 3, "much of the ingest was still to come"
    assert (passes.result.text, passes.result.sources) == (alone.text, alone.sources)
    assert all(torch.equal(a, b) for a, b in zip(bits(corpus), expected, strict=True))


def test_a_long_prompt_gives_way_between_its_chunks_and_neither_answer_changes(made: Callable[..., Engine]) -> None:
    engine = made()
    prompt, short = "The quick brown fox jumps over the lazy dog. " * 80, "A cache keeps"
    expected = [engine.generate(text, strategy="reattention").text for text in (prompt, short)]
    engine.prefixes.release()
    passes = Passes(engine, 2, lambda: engine.generate(short).text)
    assert engine.generate(prompt, strategy="reattention").text == expected[0]
    assert passes.result == expected[1]
    assert [count for _, count in passes.runs][:2] == [2, 4], "two chunks, then the short prompt and its four tokens"
    assert passes.runs[2][1] > 4


def test_while_documents_are_read_no_prefix_takes_the_memory_that_was_counted(made: Callable[..., Engine]) -> None:
    engine = made(reach=64, ingest_tokens=64)
    passes = Passes(engine, 3, lambda: engine.generate("The quick brown fox jumps over the lazy dog. " * 5))
    engine.ingest(DOCUMENTS, progress=False)
    assert passes.result.text
    assert engine.prefixes.kept.nbytes == 0
    engine.generate("The quick brown fox jumps over the lazy dog. " * 5)
    assert engine.prefixes.kept.nbytes > 0


def test_closing_during_an_ingest_ends_it(made: Callable[..., Engine]) -> None:
    engine = made(reach=64, ingest_tokens=64)
    passes = Passes(engine, 3, engine.close)
    with pytest.raises(EngineClosedError):
        engine.ingest(DOCUMENTS, progress=False)
    assert len(passes.threads) == 3
    assert engine.closed


def test_a_full_queue_refuses_and_later_everything_works(made: Callable[..., Engine]) -> None:
    engine = made(max_waiting=1)
    corpus = engine.ingest(DOCUMENTS, progress=False)
    alone = corpus.ask(QUESTIONS[0]).text
    with ThreadPoolExecutor(1) as pool:
        with engine.busy():
            waiting = pool.submit(corpus.ask, QUESTIONS[0])
            wait_for(lambda: engine.turns.waiting == 1)
            for call in (
                lambda: corpus.ask(QUESTIONS[1]),
                lambda: engine.generate("fox"),
                lambda: corpus.find(QUESTIONS[1]),
                lambda: engine.ingest("A fox.", name="foxes", progress=False),
            ):
                with pytest.raises(QueueFullError, match="max_waiting allows 1"):
                    call()
        assert waiting.result().text == alone
    assert corpus.ask(QUESTIONS[0]).text == alone
    assert engine.ingest("A fox.", name="foxes", progress=False).name == "foxes", "nothing of the refused one is left"


def test_a_deadline_counts_waiting_and_what_waited_too_long_is_never_started(made: Callable[..., Engine]) -> None:
    engine = made()
    corpus = engine.ingest(DOCUMENTS, progress=False)
    passes: list[int] = []
    engine.attachment.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    with engine.busy():
        for ask in (corpus.ask, engine.generate):
            with pytest.raises(AnswerTimeoutError, match=r"longer than its timeout of 0\.1 s"):
                ask("Why?", timeout=0.1)
    assert passes == []
    assert engine.turns.waiting == 0
    assert corpus.ask("Why?", timeout=60).text == corpus.ask("Why?").text


def test_a_deadline_ends_reading_and_writing(made: Callable[..., Engine]) -> None:
    engine = made()
    corpus = engine.ingest(DOCUMENTS, progress=False)
    engine.attachment.model.base_model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    began = time.perf_counter()
    with pytest.raises(AnswerTimeoutError):
        corpus.ask("Why?", timeout=0.3, max_new_tokens=300)  # six seconds of writing
    with pytest.raises(AnswerTimeoutError):
        engine.generate("fox " * 40_000, timeout=0.3, strategy="reattention")  # many more of reading
    assert time.perf_counter() - began < 4
    with pytest.raises(CancelledError):  # and leaving is no timeout
        stream = corpus.stream("Why?", timeout=60, max_new_tokens=300)
        next(stream)
        stream.cancel()
        list(stream)


@pytest.mark.parametrize(("field", "value"), [("max_waiting", -1), ("max_waiting", 1.5), ("max_waiting", True)])
def test_settings_of_the_queue_are_checked(made: Callable[..., Engine], field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        made(**{field: value})


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "soon", True])
def test_a_deadline_is_a_positive_number(engine: Engine, timeout: Any) -> None:
    with pytest.raises(InvalidConfigError, match=r"^timeout\b.*got "):
        engine.generate("fox", timeout=timeout)


async def test_many_tasks_over_one_corpus_get_the_serial_answers_and_change_nothing(engine: Engine) -> None:
    """Threads do the same in test_engine.py. Another ingest runs beside the tasks."""
    corpus = engine.ingest(DOCUMENTS, progress=False)
    before = bits(corpus)
    serial = {q: corpus.ask(q, max_new_tokens=3) for q in QUESTIONS}
    asked = QUESTIONS * 4
    random.Random(1).shuffle(asked)
    corpus.edition.memo.clear()
    ingest = asyncio.to_thread(engine.ingest, [d * 2 for d in DOCUMENTS], progress=False)
    answers = [afinish(corpus.stream(q, max_new_tokens=3)) for q in asked]
    *answers, other = await asyncio.gather(*answers, ingest)  # type: ignore[assignment, list-item]
    for question, answer in zip(asked, answers, strict=True):
        expected = serial[question]
        assert (answer.text, answer.sources) == (expected.text, expected.sources)  # type: ignore[attr-defined]
    assert len({answer.text for answer in answers}) > 1  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(bits(corpus), before, strict=True))
    assert other.n_tokens > corpus.n_tokens  # type: ignore[attr-defined]


def test_a_question_over_ten_times_the_documents_takes_no_more_memory(made: Callable[..., Engine]) -> None:
    """A fork of the corpus copies none of it: all tensors that are alive are counted before every pass of a question.

    Passages are not compared here, which is done in batches that are bounded, but not full over the small corpus.
    """
    engine = made(max_new_tokens=2)
    text = "The warranty of device {} lasts {} years, says its manufacturer. " * 6
    added = []
    for n in (6, 60):
        corpus = engine.ingest([Document(text=text.format(*[i] * 12)) for i in range(n)], progress=False)
        added.append(peak(engine, corpus))
    page = 4 * engine.attachment.per_token * PAGE
    assert corpus.nbytes > 300 * page
    assert abs(added[1] - added[0]) < 2 * page, added


def peak(engine: Engine, corpus: Corpus) -> int:
    """The most bytes of tensors that are alive during a question and were not before."""

    def alive() -> dict[int, torch.UntypedStorage]:
        storages = (one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor)
        return {storage.data_ptr(): storage for storage in storages}

    def ask() -> None:
        corpus.ask("Who is it?", strategy=Consensus(candidates=0))

    ask()  # what is worked out once
    gc.collect()
    before, during = alive(), list[int]()  # what was there stays, so that its place is not another's
    hook = engine.attachment.model.register_forward_pre_hook(
        lambda *_: during.append(sum(new.nbytes() for place, new in alive().items() if place not in before))
    )
    ask()
    hook.remove()
    assert len(during) > 1
    return max(during)
