"""The CSV file of a measurement: one line a case, appended as it comes, safe to kill at any byte; knows no task.

A row is known by its task, model, method, parameters, settings, length, depth, seed, name and split. A rerun skips those
it finds; the line that was being written when a run was killed is cut off and measured again.
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from reattention_core.errors import InvalidRequestError

KEY = ("task", "model", "method", "parameters", "settings", "length", "depth", "seed", "case", "split")
RECALL = (1, 3, 5, 10)
SCORES = ("score", "f1", "em", *(f"recall@{k}" for k in RECALL))
COLUMNS = (
    *KEY,
    "status",
    *SCORES,
    "tokens",
    "seconds",
    "ingest_seconds",
    "answer",
    "expected",
    "note",
    "device",
    "versions",
    "commit",
)

Row = dict[str, str]


class Rows:
    """The rows of a file.

    Args:
        path: of the file; made where there is none.
        retry: measure rows again that say that a method failed.

    Attributes:
        kept: rows that were there before.

    Raises:
        InvalidRequestError: the file is something else.
    """

    def __init__(self, path: Path, retry: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self.kept = list(read(path)) if path.exists() else []
        if retry and any(row["status"] != "ok" for row in self.kept):
            self.kept = [row for row in self.kept if row["status"] == "ok"]
            partial = path.with_suffix(".partial")
            partial.write_text(_line(COLUMNS) + "".join(_line(row[c] for c in COLUMNS) for row in self.kept))
            partial.replace(path)
        self._keys = {key(row) for row in self.kept}
        if not path.exists():
            path.write_text(_line(COLUMNS))

    def __contains__(self, row: Mapping[str, str]) -> bool:
        return key(row) in self._keys

    def append(self, row: Row) -> None:
        """Add a row and see it safely on disk."""
        with self.path.open("a", encoding="utf-8", newline="") as out:
            out.write(_line(_on_one_line(row.get(column, "")) for column in COLUMNS))
            out.flush()
            os.fsync(out.fileno())
        self._keys.add(key(row))


def key(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row is known by."""
    return tuple(row.get(column, "") for column in KEY)


def read(path: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        InvalidRequestError: its first line is not that of this version.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        found = csv.DictReader(lines)
        if tuple(found.fieldnames or ()) != COLUMNS:
            raise InvalidRequestError(
                f"{path} has other columns than this version writes: pass another folder with --out, or move the file away"
            )
        yield from found


def number(value: float | None, digits: int = 4) -> str:
    """A number as a row has it; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _line(fields: Iterator[str] | tuple[str, ...]) -> str:
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerow(fields)
    return made.getvalue()


def _on_one_line(field: str) -> str:
    """A field whose line breaks are written as escapes."""
    return field.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")


def _cut_torn_line(path: Path) -> None:
    """Remove what stands after the last line end."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole == 0:
        # Not even the head was written, unless this is no file of ours.
        if not _line(COLUMNS).encode().startswith(data):
            raise InvalidRequestError(f"{path} is no file of rows: pass another folder with --out")
        path.unlink()
    elif whole < len(data):
        os.truncate(path, whole)
