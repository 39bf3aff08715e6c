"""What durability costs: a corpus saved, opened and read to the last page, beside plain safetensors of the same bytes.

Pages have the bundled model's shape and random contents, in documents of about a thousand tokens; no model runs. Ours syncs,
sums up every page and checks the sums; `save_file` does none of that, so it is measured with a sync as well. `load_file` maps
and reads nothing, so what it gives is read as well: added up, the least that can be done with bytes, or copied into new memory.
Cold: the kernel was told to drop the files from its memory. All is written under one folder, whose disk is what is measured.
A fork is what every question has of its own before it is read, beside a copy of all pages.

    python benchmarks/store.py --tokens 20000 --tokens 100000
"""

import gc
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import safetensors
import torch
import typer
from safetensors.torch import load_file, save_file

from benchmarks.timing import RESULTS, processor_stamp, write_rows
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.edition import assembled
from reattention_core.select.fixed import Everything
from reattention_core.sources import ReadDocument
from reattention_core.store import Store
from reattention_core.store.about import About

ABOUT = About("random", "independent", {"weights": "random"})
CPU = torch.device("cpu")
LAYERS, SHAPE = 30, (3, 64, 64)
LENGTH = 1000


def documents(n_tokens: int) -> tuple[Pages, list[ReadDocument]]:
    """Random pages of documents of LENGTH tokens."""
    layout = lay_out([LENGTH] * (n_tokens // LENGTH))
    pages = Pages.allocate([SHAPE] * LAYERS, layout.first, layout.filled, torch.bfloat16, CPU)
    for tensor in (*pages.keys, *pages.values):
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15)
    spans = torch.stack([torch.arange(LENGTH), torch.arange(LENGTH) + 1], 1).int() * 4
    return pages, [ReadDocument(Document(text=f"{n}" * LENGTH), spans, start) for n, start in enumerate(layout.starts)]


def drop(folder: Path) -> None:
    """Have the kernel forget what it holds of the files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, and of the processor in it, which other programs prolong less.

    What it returns is dropped before the next, and Python has no rubbish left to collect in it.
    """
    gc.collect()
    began, worked = time.perf_counter(), time.process_time()
    found = call()
    seconds = time.perf_counter() - began, time.process_time() - worked
    del found
    return seconds


class Rivals:
    """The same bytes in a store and in a file of safetensors, under one folder."""

    def __init__(self, folder: Path, n_tokens: int) -> None:
        self.pages, self.read = documents(n_tokens)
        self.more, (self.new,) = documents(LENGTH)
        self.tensors = {f"keys.{n}": t for n, t in enumerate(self.pages.keys)}
        self.tensors |= {f"values.{n}": t for n, t in enumerate(self.pages.values)}
        self.root, self.file = folder / "store", folder / "plain.safetensors"
        self.store = Store(self.root)

    def save(self) -> None:
        """Ours."""
        with self.store.draft("c", ABOUT, replace=True) as draft:
            draft.publish(self.pages, self.read)

    def save_plain(self, file: Path, synced: bool) -> None:
        """Theirs."""
        save_file(self.tensors, file)
        if synced:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def open(self) -> Any:
        """Ours, mapped."""
        return self.store.load("c", ABOUT.fingerprint, CPU)

    def open_and_read(self) -> int:
        """Ours, every page read, held against its sum and added up."""
        pages, total = self.open().pages, 0
        for layer in range(pages.n_layers):
            total += sum(int(part.view(torch.int64).sum()) for part in pages.read(layer, 0, pages.n_pages))
        return total

    def open_and_read_plain(self) -> int:
        """Theirs, every tensor added up."""
        return sum(int(tensor.view(torch.int64).sum()) for tensor in load_file(self.file).values())

    def open_and_copy(self) -> torch.Tensor:
        """Ours, every page held against its sum and copied."""
        pages = self.open().pages
        return self._copied(part for n in range(pages.n_layers) for part in pages.read(n, 0, pages.n_pages))

    def open_and_copy_plain(self) -> torch.Tensor:
        """Theirs, every tensor copied."""
        return self._copied(load_file(self.file).values())

    def _copied(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """In memory that the process did not have before, which malloc would not always give."""
        memory, at = torch.frombuffer(mmap.mmap(-1, sum(t.nbytes for t in self.tensors.values())), dtype=torch.uint8), 0
        for tensor in tensors:
            memory[at : at + tensor.nbytes] = tensor.view(torch.uint8).flatten()
            at += tensor.nbytes
        return memory

    def fork(self) -> ContextCache:
        """A question's own cache over all pages."""
        return ContextCache(LAYERS, Everything(), 8192, self.pages)

    def fork_plain(self) -> list[torch.Tensor]:
        """What a question would need that could change the pages it reads: all of them again."""
        return [tensor.clone() for tensor in self.tensors.values()]

    def edit(self) -> None:
        """One more document in a corpus that is on disk."""
        opened = self.open()
        parts = [(d.document, d, opened.pages) for d in opened.documents] + [(self.new.document, self.new, self.more)]
        with self.store.draft("c", ABOUT, base=opened.manifest.generation) as draft:
            draft.publish(*assembled(opened.pages, parts))


def measured(folder: Path, n_tokens: int, runs: int) -> list[dict[str, Any]]:
    """Rows: the least of some runs of each, in turns."""
    rivals, size = Rivals(folder, n_tokens), 0
    times: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, call: Callable[[], Any], cold: bool = False) -> None:
        if cold:
            drop(folder)
        times.setdefault(name, []).append(timed(call))

    def beside_each_other(run: int, *calls: tuple[str, Callable[[], Any]], cold: bool = False) -> None:
        """In turns, as the first may have to find the memory, or the kernel's for files, that the others take over."""
        for turn in range(len(calls)):
            note(*calls[(run + turn) % len(calls)], cold)

    plain, unsynced = rivals.file, folder / "unsynced.safetensors"
    for run in range(runs):
        shutil.rmtree(rivals.root, ignore_errors=True)
        plain.unlink(missing_ok=True)
        unsynced.unlink(missing_ok=True)
        beside_each_other(
            run,
            ("save", rivals.save),
            ("save_file and sync", lambda: rivals.save_plain(plain, True)),
            ("save_file", lambda: rivals.save_plain(unsynced, False)),
        )
        beside_each_other(run, ("open", rivals.open), ("load_file", lambda: load_file(plain)))
        for how in ("warm", "cold"):
            ours, theirs = f"open and read all, {how}", f"load_file and read all, {how}"
            both = (ours, rivals.open_and_read), (theirs, rivals.open_and_read_plain)
            beside_each_other(run, *both, cold=how == "cold")
        ours, theirs = "open and copy all, warm", "load_file and copy all, warm"
        beside_each_other(run, (ours, rivals.open_and_copy), (theirs, rivals.open_and_copy_plain))
        beside_each_other(run, ("fork", rivals.fork), ("copy of all pages", rivals.fork_plain))
        size = sum(path.stat().st_size for path in rivals.root.rglob("*") if path.is_file())
        note("edit: one document more", rivals.edit)
    edited = sum(path.stat().st_size for path in rivals.root.rglob("*") if path.is_file()) - size
    beside = {
        "save": "save_file and sync",
        "open": "load_file",
        "open and read all, warm": "load_file and read all, warm",
        "open and read all, cold": "load_file and read all, cold",
        "open and copy all, warm": "load_file and copy all, warm",
        "fork": "copy of all pages",
    }
    other = {"edit: one document more": edited, "fork": rivals.fork().nbytes, "copy of all pages": rivals.pages.nbytes}
    least = {name: tuple(map(min, zip(*taken, strict=True))) for name, taken in times.items()}
    rows: list[dict[str, Any]] = []
    for name, (seconds, worked) in least.items():
        row = {"measured": name, "tokens": n_tokens, "bytes": other.get(name, size)}
        row |= {"seconds": seconds, "processor_seconds": worked}
        if name in beside:
            theirs = least[beside[name]]
            row |= {"beside": beside[name], "times": seconds / theirs[0], "processor_times": worked / theirs[1]}
        rows.append(row)
    return rows


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Size of the corpus; may be repeated.")] = None,
    runs: Annotated[int, typer.Option(help="Of each; the least counts.")] = 4,
    folder: Annotated[Path | None, typer.Option(help="On the disk that is to be measured.")] = None,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Save, open and read beside plain safetensors."""
    stamp = {"safetensors": safetensors.__version__, **processor_stamp(commit)}
    rows: list[dict[str, Any]] = []
    for n in tokens or [20_000, 100_000]:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            for row in measured(Path(made), n, runs):
                rows.append(row)
                print(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    write_rows(RESULTS / "store_cpu.csv", [*columns, *stamp], [row | stamp for row in rows])


if __name__ == "__main__":
    typer.run(main)
