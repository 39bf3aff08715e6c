"""What a corpus costs in each tier: the same questions over the same pages on the device, on the host and on disk, in one run.

A long text is cut into documents of about 1,000 tokens and repeated as need be; some of them hold a number that a question asks
for. Every tier gets the same questions, each about another place and once, after one that is not counted. A size that does not
fit the device is asked where the library puts it.

    python benchmarks/tiers.py --tokens 1000000 --tokens 4000000
"""

import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import typer

from benchmarks.end_to_end import clean, reset_peak, since
from benchmarks.store import drop
from benchmarks.texts import ESSAYS, long_text
from benchmarks.timing import CUDA, RESULTS, Row, result_file, shown, stamp, write_rows
from reattention_core import Corpus, Engine
from reattention_core.cache.pinned import pinned
from reattention_core.cache.stitched import onto
from reattention_core.cache.tiered import TieredPages
from reattention_core.documents import Document
from reattention_core.models.loading import BUNDLED
from reattention_core.store.about import About

CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Perth", "Turin", "Kyoto", "Dakar", "Leeds")
FORM = "\nQuestion: {question}"
QUESTION = (
    "What is the special magic number for {city} mentioned in the provided text?\n"
    "Answer: The special magic number for {city} mentioned in the provided text is"
)
TIMED = 9
"""Questions that are timed, each about a sentence of another place in the text."""

DOCUMENT = 4000
"""Characters of a document."""

COLUMNS = ("tier", "tokens", "metric", "value", "unit", "times_device", "note")


def documents(text: str, n_tokens: int, per_token: float) -> list[Document]:
    """The text in documents, with one number for each city, spread evenly."""
    characters = int(n_tokens * per_token)
    body = text * (1 + characters // len(text))
    parts = [body[at : min(at + DOCUMENT, characters)] for at in range(0, characters, DOCUMENT)]
    for number, city in enumerate(CITIES):
        at = (2 * number + 1) * len(parts) // (2 * len(CITIES))
        middle = parts[at].find(". ", len(parts[at]) // 2) + 1
        needle = f" One of the special magic numbers for {city} is: {magic(city)}."
        parts[at] = parts[at][:middle] + needle + parts[at][middle:]
    return [Document(text=part, id=str(number)) for number, part in enumerate(parts)]


def magic(city: str) -> int:
    """A city's number, of seven digits."""
    return 1_000_000 + int.from_bytes(city.encode(), "little") % 8_999_999


class Table:
    """Rows, printed and written as they come."""

    def __init__(self, file: Path, about: Row) -> None:
        self._file, self._about, self._rows = file, about, list[Row]()

    def add(self, *values: object) -> None:
        """A row: values in the order of COLUMNS, as many as are known."""
        row = dict(zip(COLUMNS, (*values, *[""] * (len(COLUMNS) - len(values))), strict=True))
        self._rows.append(row | self._about)
        print("  ".join(shown(value) for value in row.values() if value != ""), flush=True)
        write_rows(self._file, [*COLUMNS, *self._about], self._rows)


def tiers(engine: Engine, corpus: Corpus, folder: Path, disk: bool) -> Iterator[tuple[str, Corpus]]:
    """The corpus in every tier that it can be shown in."""
    placed = corpus.pages
    yield placed.tier if isinstance(placed, TieredPages) else "device", corpus
    if isinstance(placed, TieredPages):
        return

    def below(pages: Any) -> Corpus:
        return Corpus(engine, None, engine.tiers.below(pages), corpus.documents, corpus.mode)

    with engine.busy():
        host = below(pinned(onto(placed, torch.device("cpu"))))
    yield "host", host
    del host
    if not disk:
        return
    with engine.store.draft("c", About(engine.name, corpus.mode, engine.identity), replace=True) as draft:
        draft.publish(placed, corpus.documents)
    for how in ("cold", "warm"):
        drop(folder)
        if how == "warm":
            with engine.busy():
                below(engine.store.load("c", engine.identity, torch.device("cpu")).pages)
                engine.store.verify("c")
        with engine.busy():
            opened = below(engine.store.load("c", engine.identity, torch.device("cpu")).pages)
        yield f"disk, {how}", opened
        del opened


def asked(
    engine: Engine, corpus: Corpus, tier: str, questions: Sequence[str], table: Table, device_seconds: float
) -> float:
    """Time some questions and put those for numbers; returns the median seconds to the first token."""
    n, stage, right = corpus.n_tokens, engine.tiers.stage, 0
    first, recall, before = [], [], (stage.hits, stage.misses)
    reset_peak()
    for question in questions:
        began = time.perf_counter()
        answer = corpus.ask(question, max_new_tokens=1, stop=())
        first.append(since(began))
        recall.append(answer.usage.recall_seconds)
    brought = (stage.hits - before[0], stage.misses - before[1])
    for city in CITIES:
        right += str(magic(city)) in corpus.ask(QUESTION.format(city=city), max_new_tokens=16).text
    seconds = statistics.median(first[1:])
    times = seconds / device_seconds if device_seconds else ""
    table.add(tier, n, "first token", seconds * 1e3, "ms", times, f"the very first {first[0] * 1e3:.0f} ms")
    table.add(tier, n, "first token, until it reads", statistics.median(recall[1:]) * 1e3, "ms")
    table.add(tier, n, "right answers", right, f"of {len(CITIES)}")
    pages = corpus.pages
    on_device = pages.index_bytes if isinstance(pages, TieredPages) else pages.nbytes
    table.add(tier, n, "on the device, of the corpus", on_device / n, "bytes/token")
    if isinstance(pages, TieredPages):
        table.add(tier, n, "pages a question brought", brought[1] / len(questions), "", "", f"{brought[0]:,} lay there")
        table.add(tier, n, "stage", stage.nbytes / 1e9, "GB")
    if CUDA:
        table.add(tier, n, "peak of asking on the device", torch.cuda.max_memory_allocated() / 1e9, "GB")
    return seconds


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Size of the corpus; may be repeated.")] = None,
    model: Annotated[str, typer.Option(help="Name or file of the model.")] = BUNDLED,
    text: Annotated[Path, typer.Option(help="A long text; the usual one is Paul Graham's essays.")] = ESSAYS,
    disk_tokens: Annotated[int, typer.Option(help="Larger corpora are not written to disk.")] = 1_000_000,
    ingest_tokens: Annotated[int, typer.Option(help="Tokens in one pass of ingest; 0 is the library's.")] = 0,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder where corpora are saved for the time of the run.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="2,000 tokens, for a CPU.")] = False,
) -> None:
    """Ask the same corpus in each tier."""
    body = long_text(text)
    table = Table(result_file(out, "tiers", ".csv"), stamp(commit))
    settings: dict[str, Any] = {"ingest_tokens": ingest_tokens} if ingest_tokens else {}
    with tempfile.TemporaryDirectory(dir=store) as made:
        folder = Path(made) / "corpora"
        with Engine.from_pretrained(model, store=folder, prefix_bytes=0, question_form=FORM, **settings) as engine:
            per_token = len(body) / len(engine.tokens.encode(body).ids)
            engine.ingest(documents(body, 2000, per_token), progress=False).ask("Who?")  # compiles, examines heads
            sentences = re.findall(r"[A-Z][^.?!]{40,90}(?=\.)", body)
            questions = [f"What is said of this: {s}?" for s in sentences[:: len(sentences) // TIMED][:TIMED]]
            for n in [2000] if quick else tokens or [100_000]:
                given, began = documents(body, n, per_token), time.perf_counter()
                corpus = engine.ingest(given, progress=False)
                seconds, device_seconds = since(began), 0.0
                table.add("", corpus.n_tokens, "ingest", corpus.n_tokens / seconds, "tokens/s", "", f"{seconds:.1f} s")
                for tier, one in tiers(engine, corpus, folder, n <= disk_tokens):
                    found = asked(engine, one, tier, questions, table, device_seconds)
                    device_seconds = found if tier == "device" else device_seconds
                    del one
                del corpus
                clean()


if __name__ == "__main__":
    typer.run(main)
