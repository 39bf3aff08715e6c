"""The file of rows: what is there is skipped, what was torn is measured again, and one case is one line."""

from pathlib import Path

import pytest

from reattention_bench.rows import COLUMNS, Rows, number, read
from reattention_core.errors import InvalidRequestError


def row(seed: int, **fields: str) -> dict[str, str]:
    return {"task": "t", "method": "m", "seed": str(seed), "status": "ok", "score": "1", **fields}


def test_rows_come_back(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "a" / "rows.csv")
    rows.append(row(1, answer='a\n"b", c\r\0'))
    assert row(1) in rows
    assert row(2) not in rows
    assert {**row(1), "split": "tune"} not in rows
    again = Rows(rows.path)
    assert row(1) in again
    assert again.kept[0]["answer"] == 'a\\n"b", c\\r\\0'
    assert rows.path.read_text().count("\n") == 2, "a head and one line"


@pytest.mark.parametrize("kept", range(0, 400, 7))
def test_a_file_cut_anywhere_goes_on(tmp_path: Path, kept: int) -> None:
    """As a kill leaves it: whatever is left, the whole lines count and the torn one is written again."""
    path = tmp_path / "rows.csv"
    rows = Rows(path)
    for seed in range(3):
        rows.append(row(seed, answer="one, two", note="x" * 20))
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    again = Rows(path)
    present = [seed for seed in range(3) if row(seed) in again]
    assert len(present) == max(0, whole[:kept].count(b"\n") - 1)
    for seed in range(3):
        if row(seed) not in again:
            again.append(row(seed, answer="one, two", note="x" * 20))
    assert path.read_bytes() == whole


def test_failed_rows_are_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = Rows(path)
    rows.append(row(1))
    rows.append(row(2, status="failed"))
    assert row(2) in Rows(path)
    retried = Rows(path, retry=True)
    assert row(2) not in retried
    assert row(1) in retried
    assert [r["seed"] for r in read(path)] == ["1"]


def test_retrying_loses_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = Rows(path)
    rows.append(row(1, answer="a\\b\nc"))
    before = next(read(path))
    rows.append(row(2, status="failed"))
    Rows(path, retry=True)
    assert next(read(path)) == before


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "no end of line", ",".join(COLUMNS[:-1]) + "\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match="--out"):
        Rows(path)
    assert path.read_text() == text


def test_numbers() -> None:
    assert [number(value) for value in (None, 1.0, 0.5, 0.33333, 0.0)] == ["", "1", "0.5", "0.3333", "0"]
    assert number(12.345, 2) == "12.35"
    assert number(100.0) == "100"
