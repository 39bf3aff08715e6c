"""Writes the measured tables of docs/quality.md from the rows that are kept: `make quality-table`."""

from itertools import groupby
from pathlib import Path

from reattention_bench.report import rows_in
from reattention_bench.summary import HEAD, cells, summarise

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quality.md"
RESULTS = ROOT / "benchmarks" / "quality" / "results"
BEGIN, END = "<!-- measured: written by make quality-table -->\n", "<!-- end of measured -->"
HIDDEN = ("task", "split", "failed")


def tables() -> str:
    """A table a task, of the half of the cases that is for reporting."""
    lines = [line for line in summarise(rows_in(RESULTS)) if line.split == "report"]
    made = []
    for task, group in groupby(lines, key=lambda line: line.task):
        rows = [cells(line) for line in group]
        shown = [i for i, title in enumerate(HEAD) if title not in HIDDEN and any(row[i] for row in rows)]
        made.append(f"### {task}\n")
        made.append("| " + " | ".join(HEAD[i] for i in shown) + " |")
        made.append("| " + " | ".join("---" for _ in shown) + " |")
        made += ["| " + " | ".join(row[i] for i in shown) + " |" for row in rows]
        made.append("")
    return "\n".join(made) + "\n"


def written() -> str:
    """What the page says now, markers not included."""
    text = PAGE.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.split(END)[1])
