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
H100, H200 = "nvidia_h100_80gb_hbm3", "nvidia_h200"
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
    keys = "H", "D", "Q", "N"
    here, there = (beside(rows(f"kernels_{gpu}", op="select_topk", keys="iid"), *keys) for gpu in (H100, H200))
    body = []
    for row, other in zip(here, there, strict=True):
        ours, published = row["exact"], short(row["one_per_block"]["median_ms"])
        full = row["torch.topk of the score matrix"]["median_ms"]
        slower = f"{float(full) / float(ours['median_ms']):.0f} times slower" if full else "does not fit"
        size, ms = (f"{int(ours['Q']):,}", f"{int(ours['N']):,}"), short(ours["median_ms"])
        coded = [row[f"{name} index"] for name in ("int8", "float8_e4m3fn")]
        faster = " · ".join(f"{float(index['speedup']):.2f} ({share(index['recall_at_4'])})" for index in coded)
        speedups = (f"{float(other[f'{name} index']['speedup']):.2f}" for name in ("int8", "float8_e4m3fn"))
        exact = other["exact"]
        second = " · ".join([short(exact["median_ms"]), share(exact["share_of_limit"]), *speedups])
        body.append((shape(ours), *size, ms, share(ours["share_of_limit"]), published, slower, faster, second))
    titles = "ms", "of the matrix-product rate", "published rule, ms", "torch.topk of all scores"
    titles += ("by an index, times as fast (recall@4): int8 · float8", "an H200: ms · of the rate · int8 · float8")
    return markdown(["heads (key-value), D", "Q", "N", *titles], body)


def share(value: str) -> str:
    return short(value, 3 if float(value) > 0.9 else 2).removeprefix("0")


def evidence() -> str:
    here, there = (rows(f"kernels_{gpu}", op="page_evidence", variant="exact") for gpu in (H100, H200))
    body = []
    for row, other in zip(here, there, strict=True):
        ratio, second = (short(float(one["median_ms"]) / float(one["limit_ms"]), 2) for one in (row, other))
        times = short(row["median_ms"]), short(row["limit_ms"])
        body.append((shape(row), f"{int(row['N']):,}", *times, ratio, " · ".join([short(other["median_ms"]), second])))
    titles = "ms", "time to read the keys once, ms", "ratio", "an H200: ms · ratio"
    return markdown(["heads (key-value), D", "N", *titles], body)


def attention() -> str:
    here, there = (
        beside([row for row in rows(f"kernels_{gpu}", op="attend_selected") if row["W"] != row["N"]], "H", "D", "W")
        for gpu in (H100, H200)
    )

    def ratios(ours: Row) -> list[str]:
        return [short(float(ours["median_ms"]) / float(ours["limit_ms"]), 2), short(ours["times_reading"], 2)]

    body = []
    for row, other in zip(here, there, strict=True):
        ours, theirs = row["attend_selected"], other["attend_selected"]
        others = [row[f"torch {name}"]["median_ms"] for name in ("gather, rotate, SDPA", "SDPA, window ready")]
        reading = ours["limit_ms"], row["reading the same pages"]["median_ms"]
        times = [short(ms) for ms in (ours["median_ms"], *others, *reading)]
        second = " · ".join([short(theirs["median_ms"]), *ratios(theirs)])
        body.append((shape(ours), f"{int(ours['W']):,}", *times, " · ".join(ratios(ours)), second))
    rivals = "torch: gather, rotate, attend", "torch: window ready"
    limits = "time to read K and V once, at the copy rate", "a kernel that only reads them"
    last = "times the one · the other", "an H200: ms · the same"
    return markdown(["heads (key-value), D", "W", "ms", *rivals, *limits, *last], body)


def rotation() -> str:
    body = []
    for row in beside(rows(f"kernels_{H200}", op="rotate"), "H", "D", "N"):
        ours, torch = row["rotate"], row["torch, as the models do"]
        size = ours["H"], ours["D"], f"{int(ours['N']):,}"
        body.append((*size, short(ours["median_ms"]), share(ours["share_of_limit"]), short(torch["median_ms"])))
    return markdown(["heads", "D", "tokens", "ms", "of the copy rate", "as the models do, ms"], body)


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
    "rotation": rotation,
    "small": lambda: end_to_end(H200, "bundled", ("reattention, CUDA graphs", "peak of asking")),
    "cpu": processor,
    "8b": lambda: end_to_end(H200, "8b", ("stock, full attention", "prefill · decode")),
}


def page(text: str) -> str:
    """The page with its tables as the rows have them."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + END, text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
