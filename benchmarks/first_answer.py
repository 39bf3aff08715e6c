"""What the first answer over a saved corpus takes: memory, of its own and mapped from files, and seconds, in a new process.

The corpus has the bundled model's sink and otherwise random pages, so that no hours of reading precede; it is asked as any
other, though what is answered means nothing. Before it is opened the process has answered over a short text, so that weights
and what an answer takes anyhow are there. Mapped memory is the kernel's copy of files, which it drops when others need it.

    python benchmarks/first_answer.py --tokens 100000
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import typer

from benchmarks.store import CPU, LAYERS, LENGTH, SHAPE, drop
from benchmarks.timing import RESULTS, processor_stamp, write_rows
from reattention_core import Document, Engine
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.reading import How, drafted
from reattention_core.select import Consensus
from reattention_core.sources import ReadDocument

MODEL = "smollm2-135m-instruct"
SHORT = "The warranty of the device lasts two years, as its manufacturer says. " * 60
QUESTIONS = ["How long does the warranty last?", "Who made the device?", "What is the longest day of the year?"]


class Memory:
    """The most memory of this process while it lasts, of its own ("anonymous") and mapped from files, beyond what it had."""

    def __enter__(self) -> "Memory":
        self._before = self._now()
        self._most, self._done = self._before, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join()
        self.anonymous, self.mapped = (most - before for most, before in zip(self._most, self._before, strict=True))

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._done.wait(0.002)
            anonymous, mapped = self._now()
            self._most = max(self._most[0], anonymous), max(self._most[1], mapped)

    @staticmethod
    def _now() -> tuple[int, int]:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024, int(lines["RssFile"].split()[0]) * 1024


def write(root: Path, n_tokens: int) -> int:
    """Save a corpus of random pages as the bundled model's; its bytes."""
    with Engine.from_pretrained(MODEL, store=root, device="cpu") as engine:
        engine.trusted  # noqa: B018 - the exam that finds them is kept, so that the other process need not take it
        layout = lay_out([LENGTH] * (n_tokens // LENGTH))
        pages = Pages.allocate([SHAPE] * LAYERS, layout.first, layout.filled, torch.bfloat16, CPU)
        for tensor in (*pages.keys, *pages.values):
            tensor.normal_()
        pages.begin_with(engine.sink_page(Consensus(), lambda: False))
        spans = torch.stack([torch.arange(LENGTH), torch.arange(LENGTH) + 1], 1).int() * 4
        documents = [
            ReadDocument(Document(text=f"{n:04}" * LENGTH), spans, start) for n, start in enumerate(layout.starts)
        ]
        with drafted(engine, "c", How("independent", Consensus())) as draft:
            assert draft is not None
            draft.publish(pages, documents)
        return pages.nbytes


def ask(root: str) -> None:
    """In a new process: open the corpus and ask it, and print the rows."""
    rows: list[dict[str, Any]] = []

    def note(name: str, call: Any) -> Any:
        gc.collect()
        began = time.perf_counter()
        with Memory() as memory:
            found = call()
        row = {"anonymous_bytes": memory.anonymous, "mapped_bytes": memory.mapped}
        rows.append({"measured": name, "seconds": time.perf_counter() - began, **row})
        return found

    with Engine.from_pretrained(MODEL, store=root, device="cpu", max_new_tokens=8) as engine:
        short = engine.ingest(SHORT, progress=False)
        short.ask(QUESTIONS[0])
        note("answer over 1,000 tokens in memory", lambda: short.ask(QUESTIONS[1]))
        corpus = note("open", lambda: engine.open("c"))
        note("first answer", lambda: corpus.ask(QUESTIONS[1]))
        note("second answer", lambda: corpus.ask(QUESTIONS[2]))
    print(json.dumps(rows))


def measured(folder: Path, n_tokens: int) -> list[dict[str, Any]]:
    """Rows, the files in the kernel's memory and not."""
    root, rows = folder / "store", []
    nbytes = write(root, n_tokens)
    for cold in (False, True):
        if cold:
            drop(root)
        code = "import sys; from benchmarks.first_answer import ask; ask(sys.argv[1])"
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        call = [sys.executable, "-c", code, str(root)]
        done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout.splitlines()[-1]):
            rows.append({**row, "files": "cold" if cold else "warm", "tokens": n_tokens, "corpus_bytes": nbytes})
            print(rows[-1])
    return rows


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Size of the corpus; may be repeated.")] = None,
    folder: Annotated[Path | None, typer.Option(help="On the disk that is to be measured.")] = None,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Open a large corpus and ask it."""
    stamp = processor_stamp(commit)
    rows: list[dict[str, Any]] = []
    for n in tokens or [100_000]:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            rows += measured(Path(made), n)
    write_rows(RESULTS / "first_answer_cpu.csv", [*rows[0], *stamp], [row | stamp for row in rows])


if __name__ == "__main__":
    typer.run(main)
