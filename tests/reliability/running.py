"""Faults while a model reads and answers: memory runs out, an ingest is broken off, and a thousand questions."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from reattention_core import Engine
from reattention_core.cache.pages import Pages
from reattention_core.errors import CapacityError, CorpusNotFoundError
from reattention_core.reading import Mode
from tests.reliability.fault import fault
from tests.reliability.shelf import tiny_engine

DOCUMENTS = [f"The device numbered {n} has a warranty of {n} years, as its manufacturer says." for n in range(24)]
TEXT = "The quick brown fox reads the keys and values of every token. " * 3
QUESTION = "How long is the warranty?"
SMALL = {"max_new_tokens": 4, "ingest_tokens": 128, "strategy": "reattention"}
MODES: list[tuple[Mode, int]] = [("independent", 1), ("joint", 3)]
"""And of how many passes one is broken."""


class Passes:
    """Counts forward passes of a model and the tokens in them; ends the one of some number by an error."""

    def __init__(self, engine: Engine, at: int | None = None, error: BaseException | None = None) -> None:
        self.passes = self.tokens = 0
        self._at, self._error = at, error
        layer = engine.attachment.model.base_model.layers[-1]
        self._hook = layer.register_forward_hook(self._count)

    def _count(self, module: Any, given: Any, out: Any) -> None:
        self.passes += 1
        self.tokens += (out[0] if isinstance(out, tuple) else out).shape[:-1].numel()
        if self._error is not None and self.passes - 1 == self._at:
            if isinstance(self._error, SystemExit):
                os.kill(os.getpid(), signal.SIGKILL)
            raise self._error

    def end(self) -> None:
        self._hook.remove()
        self._error = None  # it knows the frames it went through, and they the pages


def pages_alive() -> int:
    """Pages that were made since `gc.freeze`, which spares looking at everything that was there before."""
    gc.collect()
    return sum(issubclass(type(one), Pages) for one in gc.get_objects())


@fault(
    "Memory runs out in the middle of reading",
    "OutOfMemoryError in every forward pass of an ingest, every third of a joint one, and where the pages are allocated: "
    "CapacityError, no pages stay in memory, others answer, the same ingest then goes on from what it had made durable",
)
def out_of_memory(folder: Path) -> int:
    times = 0
    for mode, step in MODES:
        with tiny_engine(folder / mode, **SMALL) as engine:
            passes = Passes(engine)
            whole = engine.ingest(DOCUMENTS, name="c", mode=mode, progress=False)
            n_passes, tokens = passes.passes, passes.tokens
            answer = whole.ask(QUESTION).text
        again = []
        for at in range(1, n_passes, step):
            with tiny_engine(folder / f"{mode}-{at}", **SMALL) as engine:
                gc.freeze()
                again.append(_out_of_memory_in(engine, mode, at, answer))
                gc.unfreeze()
            times += 1
        assert again[-1] < tokens / 2, (again, tokens)
    with tiny_engine(folder / "allocated", **SMALL) as engine:
        with mock.patch.object(Pages, "allocate", side_effect=torch.OutOfMemoryError("tried to allocate 20 GiB")):
            _refused(engine, "20 GiB", "independent")
        assert engine.ingest(DOCUMENTS, progress=False).ask(QUESTION).text
    return times + 1


def _out_of_memory_in(engine: Engine, mode: Mode, at: int, answer: str) -> int:
    """Tokens that are read when the ingest is begun again after memory ran out in one of its passes."""
    other = engine.ingest(TEXT, name="other", progress=False)
    said, alive = other.ask(QUESTION).text, pages_alive()
    passes = Passes(engine, at - 1, torch.OutOfMemoryError("tried to allocate 20 MiB"))
    _refused(engine, "20 MiB", mode)
    passes.end()
    assert pages_alive() <= alive
    assert engine.store.names() == ["other"]
    assert other.ask(QUESTION).text == said
    passes = Passes(engine)
    corpus = engine.ingest(DOCUMENTS, name="c", mode=mode, progress=False)
    tokens = passes.tokens
    passes.end()
    assert corpus.ask(QUESTION).text == answer
    return tokens


def _refused(engine: Engine, why: str, mode: Mode) -> None:
    try:
        engine.ingest(DOCUMENTS, name="c", mode=mode, progress=False)
    except CapacityError as error:
        assert why in str(error)
    else:
        raise AssertionError


@fault(
    "The process is killed while it reads",
    "SIGKILL in every second forward pass of an ingest: there is no half corpus; the next process goes on, reads "
    "the less the later it "
    "was, and answers the same",
)
def killed(folder: Path) -> int:
    code = "import sys, pathlib; from tests.reliability.running import dying; dying(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = []
    with tiny_engine(folder / "whole", **SMALL) as engine:
        expected = engine.ingest(DOCUMENTS, progress=False).ask(QUESTION).text
    left = sorted(folder.glob("killed-*"))
    for root in left:
        with tiny_engine(root, **SMALL) as engine:
            assert engine.store.names() == []
            try:
                engine.open("c")
            except CorpusNotFoundError:
                pass
            else:
                raise AssertionError
            passes = Passes(engine)
            corpus = engine.ingest(DOCUMENTS, name="c", progress=False)
            read.append(passes.tokens)
            assert corpus.ask(QUESTION).text == engine.open("c").ask(QUESTION).text == expected
            assert engine.store.unfinished() == []
    assert read == sorted(read, reverse=True)
    assert read[-1] < read[0] / 2
    return len(left)


def dying(folder: Path) -> None:
    """In a process of its own: be killed in every second forward pass of an ingest."""
    torch.set_num_threads(1)
    with tiny_engine(folder / "counted", **SMALL) as engine:
        passes = Passes(engine)
        engine.ingest(DOCUMENTS, name="c", progress=False)
    for at in range(0, passes.passes, 2):
        child = os.fork()
        if not child:
            with tiny_engine(folder / f"killed-{at:03}", **SMALL) as engine:
                Passes(engine, at, SystemExit())
                engine.ingest(DOCUMENTS, name="c", progress=False)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def held() -> dict[str, int]:
    """What a process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "objects": len(gc.get_objects()),
    }


@fault(
    "1,000 questions",
    "over an opened corpus, every 50th after opening it anew: memory, threads, open files and Python objects stay "
    "as they are after the "
    "first 200, and the last answer is the first",
)
def thousand(folder: Path) -> int:
    with tiny_engine(folder, max_new_tokens=1) as engine:
        engine.ingest(TEXT, name="c", progress=False)
        corpus = engine.open("c")
        first, before = corpus.ask(QUESTION).text, held()
        for number in range(1000):
            if number % 50 == 0:
                corpus = engine.open("c")
            said = corpus.ask(QUESTION).text
            assert said == first
            if number == 199:
                before = held()
        after = held()
    assert after["threads"] == before["threads"]
    assert after["files"] <= before["files"]
    assert after["objects"] <= before["objects"] + 500, (before, after)
    assert after["bytes"] <= before["bytes"] + (16 << 20), (before, after)
    return 1000
