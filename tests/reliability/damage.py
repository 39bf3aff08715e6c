"""Faults of what lies on disk: files cut short, damaged, exchanged, forged; a corpus beside the damaged one must not notice."""

import json
import pickle
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reattention_core.errors import CacheVersionError, CorpusError, CorruptCacheError, PartialCacheError
from reattention_core.store import Store, disk
from tests.reliability.fault import fault
from tests.reliability.shelf import Made, files_of, forged, holds, load, made, packs, save


class Shelf:
    """A store with the corpus `c`, to be damaged, and `other`, which is not."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root / "shelf", Store(root / "shelf")
        self.other, self.c = made("other"), made("c", summary_size=64)
        save(self.store, "other", self.other)
        save(self.store, "c", self.c)
        self.files = files_of(self.root, "c")
        self.manifest = self.root / "c" / "manifest.json"

    def refused(self, *kinds: type[CorpusError]) -> None:
        """The damaged corpus is refused, at the latest when the damaged page is read, with its name and what to do."""
        try:
            opened = load(self.store, "c")
            for layer in range(opened.pages.n_layers):
                opened.pages.read(layer, 0, opened.pages.n_pages)
        except CorpusError as error:
            assert isinstance(error, kinds or CorpusError), error
            said = str(error)
            assert "'c'" in said or "pages.safetensors" in said, said
            assert "again" in said or "use the version" in said, said
        else:
            raise AssertionError("the damage was not noticed")
        self.others_answer()

    def others_answer(self) -> None:
        assert holds(load(self.store, "other"), self.other)

    @contextmanager
    def changed(self, path: Path, data: bytes) -> Iterator[None]:
        """A file with other bytes, which then has its own again, and the corpus is whole."""
        before = path.read_bytes()
        path.write_bytes(data)
        yield
        path.write_bytes(before)
        assert holds(load(self.store, "c"), self.c)


@fault(
    "A file is cut short",
    "every file of a corpus, cut at 20 lengths from 0 on: refused, the file's name and both lengths are said",
)
def cut_short(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    for path in shelf.files:
        data = path.read_bytes()
        for part in range(20):
            with shelf.changed(path, data[: len(data) * part // 20]):
                shelf.refused(PartialCacheError, CorruptCacheError)
            times += 1
    return times


@fault("A file is missing, longer, or a folder", "every file of a corpus: refused")
def missing(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    for path in shelf.files:
        data = path.read_bytes()
        with shelf.changed(path, data + b"\0"):
            shelf.refused()
        for instead in (lambda path: None, Path.mkdir):
            path.unlink()
            instead(path)
            if path == shelf.manifest and not path.exists():
                assert shelf.store.names() == ["other"]
                shelf.others_answer()
            else:
                shelf.refused()
            if path.exists():
                path.rmdir()
            path.write_bytes(data)
        times += 3
    assert holds(load(shelf.store, "c"), shelf.c)
    return times


@fault("A bit is flipped", "one bit anywhere in any file of a corpus, its size kept: refused, every one")
def bit_flipped(folder: Path) -> int:
    shelf, draw = Shelf(folder), random.Random(1)
    for number in range(600):
        path = shelf.files[number % len(shelf.files)]
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        with shelf.changed(path, bytes(data)):
            shelf.refused()
    return 600


class _Planted:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/reattention-was-unpickled"),)


@fault(
    "A foreign file",
    "pickles that would run, archives, empty JSON, another format's magic, in place of every file: refused, nothing is run",
)
def foreign(folder: Path) -> int:
    shelf, trap, times = Shelf(folder), Path("/tmp/reattention-was-unpickled"), 0
    trap.unlink(missing_ok=True)
    contents = [
        pickle.dumps(_Planted()),
        b"PK\x03\x04" + bytes(200),
        b"GGUF" + bytes(200),
        b"{}",
        b"[]",
        b"null",
        b"\xff" * 4096,
    ]
    for path in shelf.files:
        for content in contents:
            size = path.stat().st_size
            for data in (content, content[:size].ljust(size, b"\0")):  # and of the right length
                with shelf.changed(path, data):
                    shelf.refused()
                times += 1
    assert not trap.exists()
    return times


@fault(
    "A manifest is forged",
    "every entry of a corpus's manifest left out, or of 9 other values, the checksum made right: refused, or "
    "documents as they were saved",
)
def forged_manifest(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    content = json.loads(shelf.manifest.read_text())
    for place in list(_places(content)):
        for value in (_GONE, None, -1, 0, 2**70, 1e999, "text", [], {}, [{"a": 1}]):
            changed = json.loads(json.dumps(content))
            _put(changed, place, value)
            if changed == content:
                continue
            before = shelf.manifest.read_bytes()
            forged(shelf.manifest, changed)
            try:
                assert _same_but_names(shelf)
            except CorpusError as error:
                assert "'c'" in str(error)
            shelf.manifest.write_bytes(before)
            times += 1
    shelf.others_answer()
    assert holds(load(shelf.store, "c"), shelf.c)
    return times


def _same_but_names(shelf: Shelf) -> bool:
    """Which documents there are and what they are called can be forged: their texts are what was saved."""
    opened = load(shelf.store, "c")
    saved = [(d.document.title, d.document.text, d.spans.tolist()) for d in shelf.c.documents]
    return all((d.document.title, d.document.text, d.spans.tolist()) in saved for d in opened.documents)


_GONE = object()


def _places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        content = content[key]
    if value is _GONE:
        del content[place[-1]]
    else:
        content[place[-1]] = value


@fault(
    "Files are exchanged",
    "each file of a corpus against the same file of another corpus and against its own other files, whole packs as well: refused",
)
def exchanged(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    save(shelf.store, "d", made("d", summary_size=64))
    twin = files_of(shelf.root, "d")
    for path, other in zip(shelf.files[1:], twin[1:], strict=True):
        with shelf.changed(path, other.read_bytes()):
            shelf.refused()
        times += 1
    for path in shelf.files[1:]:  # a pack's files against each other
        for other in shelf.files[1:]:
            if path != other:
                with shelf.changed(path, other.read_bytes()):
                    shelf.refused()
                times += 1
    mine, theirs = shelf.files[1].parent, twin[1].parent
    mine.rename(folder / "mine")
    shutil.copytree(theirs, mine)
    shelf.refused()
    shutil.rmtree(mine)
    shelf.refused(PartialCacheError)
    (folder / "mine").rename(mine)
    assert holds(load(shelf.store, "c"), shelf.c)
    return times + 2


@fault(
    "Another version wrote it",
    "versions 0, 1, 3 and 1,000,000 of a corpus and of a pack: refused and never guessed at, whatever else they say",
)
def other_version(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    for path in (shelf.manifest, next(file for file in shelf.files if file.name == "pack.json")):
        for version in (0, 1, 3, 10**6):
            content = json.loads(path.read_text())
            with shelf.changed(
                path, disk.to_json({**content, "version": version, "fingerprint": "of a form we do not know"})
            ):
                shelf.refused(CacheVersionError)
            times += 1
    return times


@fault(
    "A damaged corpus is ingested again",
    "three kinds of damage to each file of a pack: what is damaged is not found, is read and written anew; whole "
    "again, and no more on disk than is needed",
)
def mended(folder: Path) -> int:
    times = 0
    for name in ("pages.safetensors", "tables.safetensors", "texts.json", "pack.json"):
        for damage in (lambda data: data[:-1], lambda data: data[:-70] + b"\xff" + data[-69:], lambda data: b""):
            shelf = Shelf(folder / f"{times}")
            path = next(file for file in shelf.files if file.name == name)
            path.write_bytes(damage(path.read_bytes()))
            shelf.refused()
            mend(shelf.store, shelf.c)
            assert holds(load(shelf.store, "c"), shelf.c)
            assert len(packs(shelf.root)) == 2
            shelf.others_answer()
            times += 1
    return times


def mend(store: Store, what: Made) -> None:
    """What an ingest with `replace` does: look for the documents, read those that are not found, publish."""
    from tests.reliability.shelf import ABOUT

    with store.draft("c", ABOUT, replace=True) as draft:
        found = draft.find([d.document for d in what.documents])
        assert sum(part is None for part in found) >= 1
        draft.publish(what.pages, what.documents)


def with_sums(folder: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file of a pack, and make the checksums of the pack right; for `fuzz`."""
    data = change((folder / file).read_bytes())
    (folder / file).write_bytes(data)
    pack = json.loads((folder / "pack.json").read_text())
    length = int.from_bytes(data[:8], "little") + 8 if file == "pages.safetensors" else len(data)
    pack["bytes"][file], pack["crc32"][file] = len(data), zlib.crc32(data[:length])
    (folder / "pack.json").write_bytes(disk.to_json(pack))
