"""Every fault of the table in docs/reliability.md is run, loses nothing, and stands there as it was run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from reattention_core.store import Store
from tests.reliability import golden
from tests.reliability.fault import Fault
from tests.reliability.shelf import files_of, holds, load, save
from tests.reliability.table import FAULTS, rows_of_docs


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    times = fault.run(tmp_path)
    assert fault.row(times) in rows_of_docs(), (
        "docs/reliability.md is not up to date: write it anew with make reliability"
    )


def test_the_table_has_a_row_for_every_fault_and_no_others() -> None:
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows_of_docs()] == [fault.name for fault in FAULTS]


def test_a_corpus_of_version_2_opens_for_ever(tmp_path: Path) -> None:
    root = shutil.copytree(golden.ROOT, tmp_path / "store")
    store = Store(root)
    found = load(store, "c")
    assert found.manifest.version == 2
    assert holds(found, golden.content())
    store.verify("c")


def test_what_is_written_now_has_the_form_of_version_2(tmp_path: Path) -> None:
    """But for the names of packs: whoever changes the format has to count its version up, and to keep the golden file."""
    save(Store(tmp_path / "store"), "c", golden.content())
    written, kept = files_of(tmp_path / "store", "c"), files_of(golden.ROOT, "c")
    assert [file.name for file in written] == [file.name for file in kept]
    for one, other in zip(written[1:], kept[1:], strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    ours, theirs = written[0].read_text(), kept[0].read_text()
    assert _without_sum(ours, written[1].parent.name) == _without_sum(theirs, kept[1].parent.name)


def _without_sum(text: str, pack: str) -> dict[str, Any]:
    content = json.loads(text.replace(pack, "pack"))
    del content["crc32"]
    return dict(content)
