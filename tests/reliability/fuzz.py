"""Manifests and headers as somebody might forge them, drawn at random; no number in them makes the reader ask for memory."""

import json
import resource
import shutil
import zlib
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from reattention_core.errors import CorpusError
from reattention_core.store import disk
from tests.reliability.damage import Shelf, with_sums
from tests.reliability.fault import fault
from tests.reliability.shelf import forged, load

EXAMPLES = 250
MOST_BYTES = 64 << 20

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
EDITS = st.lists(st.tuples(st.integers(0, 2**16), JSON | st.just("remove")), min_size=1, max_size=4)
drawn = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def memory() -> int:
    """The most bytes this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warm() -> None:
    """Have hypothesis load the tables that it draws texts from, which is memory of its own."""

    @drawn
    @given(EDITS)
    def run(change: Any) -> None:
        pass

    run()


def opened(shelf: Shelf) -> None:
    """Open the forged corpus and read it: an error of ours, or pages of the shape that was saved."""
    try:
        found = load(shelf.store, "c")
        for layer in range(found.pages.n_layers):
            found.pages.read(layer, 0, found.pages.n_pages)
        for document in found.documents:
            found.pages.gather(0, found.pages.addresses[:1] * 0 + document.start)
    except CorpusError as error:
        assert str(error)


def edited(content: Any, edits: list[tuple[int, Any]]) -> Any:
    """JSON with some of its values replaced or removed, chosen by number."""
    content = json.loads(json.dumps(content))
    for number, value in edits:
        places = list(_holders(content))
        if not places:
            return value
        holder, key = places[number % len(places)]
        if value == "remove":
            del holder[key]
        else:
            holder[key] = value
    return content


def _holders(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _holders(value)


@fault(
    "A forged manifest, drawn at random",
    "hypothesis: any entries of any values, or any bytes, checksums made right: refused, or opened and read within "
    "its files; at most 64 MiB more memory",
)
def manifest(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    content, whole = json.loads(shelf.manifest.read_text()), shelf.manifest.read_bytes()
    warm()
    before = memory()

    @drawn
    @given(EDITS | st.binary(max_size=300))
    def run(change: Any) -> None:
        nonlocal times
        if isinstance(change, bytes):
            shelf.manifest.write_bytes(change)
        else:
            found = edited(content, change)
            if isinstance(found, dict):
                forged(shelf.manifest, found)
            else:
                shelf.manifest.write_text(json.dumps(found))
        opened(shelf)
        times += 1

    run()
    assert memory() - before < MOST_BYTES
    shelf.others_answer()
    shelf.manifest.write_bytes(whole)
    return _at_least(times)


@fault(
    "A forged pack, drawn at random",
    "hypothesis: a pack's manifest or the headers of its files with any entries or bytes, all checksums made right: likewise",
)
def pack(folder: Path) -> int:
    shelf, times = Shelf(folder), 0
    place = shelf.files[1].parent
    shutil.copytree(place, folder / "whole")
    corpus = json.loads(shelf.manifest.read_text())
    warm()
    before = memory()

    def header(data: bytes, edits: list[tuple[int, Any]]) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(edited(json.loads(data[8 : 8 + length]), edits)).encode()
        text = text.ljust(length)  # the same length where it fits, so that what is behind it stays where it was
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    def spliced(data: bytes, edits: list[tuple[int, Any]]) -> bytes:
        for number, value in edits:
            at, put = number % (len(data) + 1), repr(value).encode()[:8]
            data = data[:at] + put + data[at + len(put) :]
        return data

    @drawn
    @given(
        st.sampled_from(["pack.json", "pages.safetensors", "tables.safetensors", "texts.json"]), st.booleans(), EDITS
    )
    def run(file: str, structured: bool, edits: list[tuple[int, Any]]) -> None:
        nonlocal times
        shutil.rmtree(place)
        shutil.copytree(folder / "whole", place)
        if file == "pack.json":
            (place / file).write_bytes(disk.to_json(edited(json.loads((place / file).read_text()), edits)))
        elif file == "texts.json" or not structured:
            with_sums(place, file, lambda data: spliced(data, edits))
        else:
            with_sums(place, file, lambda data: header(data, edits))
        changed = json.loads(json.dumps(corpus))
        changed["packs"][place.name]["crc32"] = zlib.crc32((place / "pack.json").read_bytes())
        forged(shelf.manifest, changed)
        opened(shelf)
        times += 1

    run()
    assert memory() - before < MOST_BYTES
    shelf.others_answer()
    return _at_least(times)


def _at_least(times: int) -> int:
    assert times >= EXAMPLES, times
    return EXAMPLES
