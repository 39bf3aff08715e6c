"""From rows to a table, pictures and one page that needs nothing beside it; knows no model."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from reattention_bench.plots import figures
from reattention_bench.rows import Row, read
from reattention_bench.summary import HEAD, cells, label, summarise, table
from reattention_core.errors import InvalidRequestError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .2em .7em; text-align: right; white-space: nowrap; }
th:nth-child(1), th:nth-child(4), td:nth-child(1), td:nth-child(3), td:nth-child(4) { text-align: left; }
img { max-width: 100%; } figure { display: inline-block; margin: .5em; } .scroll { overflow-x: auto; }
"""

EXAMPLES = 40
"""Answers shown on the page; all are in the rows."""


def rows_in(folder: Path) -> list[Row]:
    """All rows of a folder's CSV files, a row that several hold taken from the first.

    Raises:
        InvalidRequestError: there are none.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        rows += read(path)
    if not rows:
        raise InvalidRequestError(
            f"there are no rows in {str(folder)!r}: name a task to measure, or the folder with --out"
        )
    return rows


def write_report(folder: Path) -> str:
    """Write summary.txt, the pictures and report.html beside the rows of a folder.

    Returns:
        The table.

    Raises:
        InvalidRequestError: there are no rows.
        ImportError: matplotlib is not installed.
    """
    rows = rows_in(folder)
    text = table(summarise(rows))
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    pictures = {}
    for name, figure in figures(rows).items():
        made = io.BytesIO()
        figure.savefig(made, format="png", dpi=110)
        pictures[name] = made.getvalue()
        (folder / f"{name}.png").write_bytes(pictures[name])
    (folder / "report.html").write_text(page(rows, pictures), encoding="utf-8")
    return text


def page(rows: Sequence[Row], pictures: dict[str, bytes]) -> str:
    """The whole report as one page of HTML with its pictures inside."""
    lines = summarise(rows)
    head = "".join(f"<th>{escape(title)}</th>" for title in HEAD)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(line)) + "</tr>" for line in lines)
    failed = [row for row in rows if row["status"] != "ok"]
    images = "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></figure>'
        for name, data in pictures.items()
    )
    stamps = dict.fromkeys((row["device"], row["versions"], row["commit"]) for row in rows)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>reattention bench</title>'
        f"<style>{_STYLE}</style></head><body><h1>reattention bench</h1>"
        "<p>Mean scores with Wilson's 95 % intervals. R@k: share of the cases in which all gold documents are among the first "
        "k by the method's own evidence. Tokens: what attention looked at. Rows of <em>tune</em> were there to choose by, rows "
        "of <em>report</em> were not.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{images}'
        + _examples("Methods that failed to run", failed, "note")
        + _examples("Answers", [row for row in rows if row["answer"] and row["expected"]], "answer")
        + "<h2>Measured on</h2><ul>"
        + "".join(f"<li>{escape(', '.join(filter(None, stamp)))}</li>" for stamp in stamps)
        + "</ul></body></html>\n"
    )


def _examples(title: str, rows: Sequence[Row], column: str) -> str:
    """Some rows, evenly over all of them."""
    if not rows:
        return ""
    step = max(1, len(rows) // EXAMPLES)
    made = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(cell)}</td>"
            for cell in (row["task"], row["length"], row["depth"], label(row), row["expected"][:80], row[column][:160])
        )
        + "</tr>"
        for row in rows[::step][:EXAMPLES]
    )
    head = "<th>task</th><th>length</th><th>depth</th><th>method</th><th>expected</th><th>got</th>"
    return f'<h2>{escape(title)} ({len(rows)})</h2><div class="scroll"><table><tr>{head}</tr>{made}</table></div>'
