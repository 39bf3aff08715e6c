"""Means and intervals out of rows; knows no task and draws nothing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reattention_bench.metrics import wilson
from reattention_bench.rows import RECALL, Row

READING = "perplexity"
"""The task whose score is no share, and has no such interval."""


@dataclass(frozen=True)
class Line:
    """One line of the table: one method on one task at one length.

    Attributes:
        task: name.
        model: name.
        method: name and parameters.
        settings: as in the rows.
        length: tokens.
        split: tune or report.
        n: scored cases.
        failed: cases in which the method failed to run; they are not among `n`.
        score: mean, None where nothing was scored.
        interval: 95 %, None for perplexity.
        f1: mean of token F1, None where it is not asked.
        recall: mean at each k, with the number of cases; empty for methods that rank nothing.
        tokens: mean tokens that attention looked at.
        seconds: mean for one answer.
    """

    task: str
    model: str
    method: str
    settings: str
    length: int
    split: str
    n: int
    failed: int
    score: float | None
    interval: tuple[float, float] | None
    f1: float | None
    recall: dict[int, tuple[float, int]]
    tokens: float | None
    seconds: float | None


def label(row: Row) -> str:
    """Method and parameters, as on the command line."""
    return f"{row['method']}:{row['parameters']}" if row["parameters"] else row["method"]


def mean(rows: Iterable[Row], column: str) -> tuple[float | None, int]:
    """Mean of a column over the rows that have it, and how many have."""
    values = [float(row[column]) for row in rows if row[column] != ""]
    return (sum(values) / len(values) if values else None), len(values)


def summarise(rows: Iterable[Row]) -> list[Line]:
    """A line for every task, model, settings, length, split and method, in the order they first come."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["task"], row["model"], row["settings"], row["length"], row["split"], label(row)].append(row)
    order = {name: place for place, name in enumerate(dict.fromkeys(key[0] for key in found))}
    keys = sorted(found, key=lambda key: (order[key[0]], *key[1:3], int(key[3]), key[4]))
    return [_line(key, found[key]) for key in keys]


def _line(key: Sequence[str], rows: list[Row]) -> Line:
    task, model, settings, length, split, method = key
    good = [row for row in rows if row["status"] == "ok"]
    score, n = mean(good, "score")
    recall = {}
    for k in RECALL:
        share, cases = mean(good, f"recall@{k}")
        if share is not None:
            recall[k] = share, cases
    return Line(
        task=task,
        model=model,
        method=method,
        settings=settings,
        length=int(length),
        split=split,
        n=n,
        failed=len(rows) - len(good),
        score=score,
        interval=None if score is None or task == READING else wilson(score, n),
        f1=mean(good, "f1")[0],
        recall=recall,
        tokens=mean(good, "tokens")[0],
        seconds=mean(good, "seconds")[0],
    )


HEAD = (
    "task",
    "length",
    "split",
    "method",
    "n",
    "failed",
    "score",
    "95 %",
    "F1",
    *(f"R@{k}" for k in RECALL),
    "tokens",
    "seconds",
)


def cells(line: Line) -> list[str]:
    """A line of the table, under HEAD."""
    method = line.method + (f" [{line.settings}]" if line.settings else "")
    score = "" if line.score is None else f"{line.score:.2f}" if line.task == READING else f"{line.score:.3f}"
    interval = "" if line.interval is None else f"{line.interval[0]:.2f}-{line.interval[1]:.2f}"
    recall = [f"{line.recall[k][0]:.3f}" if k in line.recall else "" for k in RECALL]
    return [
        line.task,
        f"{line.length:,}",
        line.split,
        method,
        str(line.n),
        str(line.failed or ""),
        score,
        interval,
        "" if line.f1 is None else f"{line.f1:.3f}",
        *recall,
        "" if line.tokens is None else f"{line.tokens:,.0f}",
        "" if line.seconds is None else f"{line.seconds:.2f}",
    ]


def table(lines: Sequence[Line]) -> str:
    """The table as text; columns without any entry are left out."""
    rows = [list(HEAD), *(cells(line) for line in lines)]
    used = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in used}
    text = {0, 2, 3}
    return "\n".join(
        "  ".join(row[i].ljust(widths[i]) if i in text else row[i].rjust(widths[i]) for i in used).rstrip()
        for row in rows
    )
