"""Writes the main tables of docs/performance.md from the rows that are kept: `make performance-table`.

A table stands between two comments that name it. What is said around the tables is written by hand.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Context
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
H100 = "nvidia_h100_80gb_hbm3"
END = "<!-- end of table -->"
TABLE = re.compile(r"(<!-- table (\S+): written by make performance-table -->\n)(.*?)" + END, re.DOTALL)

Row = dict[str, str]


def rows(name: str, **wanted: str) -> list[Row]:
    """The rows of a file that have these values."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def short(value: str | float, digits: int = 3) -> str:
    """A number in a few digits, thousands set apart."""
    if value == "":
        return "not run"
    return f"{Context(digits, ROUND_HALF_UP).create_decimal(value):,f}"


def shape(row: Row) -> str:
    return f"{row['H']} ({row['G']}), {row['D']}"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def beside(found: list[Row], *keys: str) -> list[dict[str, Row]]:
    """Rows of one shape together, by their variants, in the order of the first."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["variant"]] = row
    return list(groups.values())


def topk() -> str:
    found = rows(f"kernels_{H100}", op="select_topk", keys="iid")
    body = []
    for row in beside(found, "H", "D", "Q", "N"):
        ours, published = row["exact"], short(row["one_per_block"]["median_ms"])
        full = row["torch.topk of the score matrix"]["median_ms"]
        slower = f"{float(full) / float(ours['median_ms']):.0f} times slower" if full else "does not fit"
        size, ms = (f"{int(ours['Q']):,}", f"{int(ours['N']):,}"), short(ours["median_ms"])
        coded = [row[f"{name} index"] for name in ("int8", "float8_e4m3fn")]
        faster = " · ".join(f"{float(index['speedup']):.2f} ({share(index['recall_at_4'])})" for index in coded)
        body.append((shape(ours), *size, ms, share(ours["share_of_limit"]), published, slower, faster))
    titles = "ms", "of the matrix-product rate", "published rule, ms", "torch.topk of all scores"
    titles += ("by an index, times as fast (recall@4): int8 · float8",)
    return markdown(["heads (key-value), D", "Q", "N", *titles], body)


def share(value: str) -> str:
    return short(value, 3 if float(value) > 0.9 else 2).removeprefix("0")


def evidence() -> str:
    body = []
    for row in rows(f"kernels_{H100}", op="page_evidence", variant="exact"):
        ratio = short(float(row["median_ms"]) / float(row["limit_ms"]), 2)
        body.append((shape(row), f"{int(row['N']):,}", short(row["median_ms"]), short(row["limit_ms"]), ratio))
    return markdown(["heads (key-value), D", "N", "ms", "time to read the keys once, ms", "ratio"], body)


def attention() -> str:
    found = rows(f"kernels_{H100}", op="attend_selected")
    body = []
    for row in beside([row for row in found if row["W"] != row["N"]], "H", "D", "W"):
        ours = row["attend_selected"]
        others = [row[f"torch {name}"]["median_ms"] for name in ("gather, rotate, SDPA", "SDPA, window ready")]
        ratios = [short(float(ours["median_ms"]) / float(ours["limit_ms"]), 2), short(ours["times_reading"], 2)]
        reading = ours["limit_ms"], row["reading the same pages"]["median_ms"]
        times = [short(ms) for ms in (ours["median_ms"], *others, *reading)]
        body.append((shape(ours), f"{int(ours['W']):,}", *times, " · ".join(ratios)))
    rivals = "torch: gather, rotate, attend", "torch: window ready"
    limits = "time to read K and V once, at the copy rate", "a kernel that only reads them"
    return markdown(["heads (key-value), D", "W", "ms", *rivals, *limits, "times the one · the other"], body)


def end_to_end(gpu: str, model: str, *last: tuple[str, str]) -> str:
    found = rows(f"end_to_end_{gpu}", model=model)
    values = {(row["system"], row["size"], row["metric"]): row["value"] for row in found}
    sizes = sorted({row["size"] for row in found if row["metric"] == "tokens read"}, key=int)
    plain, graphs = "reattention", "reattention, CUDA graphs"
    body = []
    for size in sizes:
        both = [
            " · ".join(short(values[system, size, metric]) for system in (graphs, plain))
            for metric in ("first token", "decode")
        ]
        more = [
            " · ".join(dict.fromkeys(short(values.get((system, size, one), "")) for one in metric.split(" · ")))
            for system, metric in last
        ]
        read, peak = f"{int(values[plain, size, 'tokens read']):,}", short(values[plain, size, "peak of ingest"])
        body.append((read, short(values[plain, size, "ingest"]), *both, peak, *more))
    pairs = "first token, ms: graphs · without", "decode, ms a token: graphs · without"
    titles = {"peak of asking": "peak of asking, GB", "prefill · decode": "stock: prefill, tokens/s · decode, ms"}
    head = ["corpus", "ingest, tokens/s", *pairs, "peak of ingest, GB", *(titles[metric] for _, metric in last)]
    return markdown(head, body)


def processor() -> str:
    body = []
    for dtype in ("bfloat16", "float32"):
        found = rows("end_to_end_cpu", dtype=dtype)
        values = {(row["system"], row["size"], row["metric"]): row["value"] for row in found}
        for size in sorted({row["size"] for row in found if row["metric"] == "tokens read"}, key=int):
            ours = [short(values["reattention", size, metric]) for metric in ("ingest", "first token", "decode")]
            stock = [
                short(values.get(("stock, full attention", size, m), "")) for m in ("prefill", "first token", "decode")
            ]
            body.append((dtype, f"{int(values['reattention', size, 'tokens read']):,}", *ours, *stock))
    ours, stock = (
        ("ingest, tokens/s", "first token, ms", "decode, ms a token"),
        ("prefill, tokens/s", "first token", "decode"),
    )
    return markdown(["weights", "corpus", *ours, *(f"stock: {title}" for title in stock)], body)


TABLES: dict[str, Callable[[], str]] = {
    "topk": topk,
    "evidence": evidence,
    "attention": attention,
    "small": lambda: end_to_end(H100, "bundled", ("reattention, CUDA graphs", "peak of asking")),
    "cpu": processor,
    "8b": lambda: end_to_end(H100, "8b", ("stock, full attention", "prefill · decode")),
}


def page(text: str) -> str:
    """The page with its tables as the rows have them."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + END, text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
