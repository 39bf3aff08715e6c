"""How fast each kernel is, beside the machine's own limits and beside what torch alone would do; knows no model.

One row for every operation, shape and variant, printed as it comes and kept in a CSV file with a plot beside it; what fails
is a row that says so. benchmarks/README.md explains the columns.

    python benchmarks/kernels.py                    # all operations, on a GPU
    python benchmarks/kernels.py --only evidence    # one of them; the rows of the others stay in the file
    TRITON_INTERPRET=1 python benchmarks/kernels.py --quick    # toy sizes on a CPU: checks the program, says nothing of speed
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: then this folder would hide other packages behind its own files' names
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bench import Bench
from benchmarks.paging import attention, rotation, votes, writing
from benchmarks.scoring import evidence, topk
from benchmarks.timing import RESULTS, Row, measure_limits, result_file, stamp

OPERATIONS = {
    "topk": ("select_topk", topk),
    "evidence": ("page_evidence", evidence),
    "attention": ("attend_selected", attention),
    "rotation": ("rotate", rotation),
    "writing": ("write_pages", writing),
    "votes": ("most_voted", votes),
}
PLOTTED = ("select_topk", "page_evidence", "attend_selected")


def main() -> None:
    """Measure the limits, then every operation that is asked for."""
    parser = argparse.ArgumentParser(description="Measure the kernels.")
    parser.add_argument("--only", choices=OPERATIONS, action="append", help="one operation; may be repeated")
    parser.add_argument("--quick", action="store_true", help="toy sizes, for a CPU")
    parser.add_argument("--commit", default="", help="the commit that is measured, where git cannot tell")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    about = stamp(asked.commit)
    limits = measure_limits(asked.quick)
    about |= {"copy_gb_s": limits.bytes / 1e9, "matmul_tflop_s": limits.flops / 1e12}
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    chosen = [OPERATIONS[name] for name in asked.only or OPERATIONS]
    file = result_file(asked.out, "kernels", ".csv")
    kept: list[Row] = []
    if file.exists():
        measured = {name for name, _ in chosen}
        with file.open(newline="") as rows:
            kept = [row for row in csv.DictReader(rows) if row["op"] not in measured]
    bench = Bench(limits, asked.quick, file, kept, about)
    for _, measure in chosen:
        measure(bench)
    missed = [row for row in bench.rows if row.get("target") and row.get("met") not in (True, "yes")]
    failed = [row for row in bench.rows if str(row.get("note") or "").startswith("failed")]
    print(f"{len(bench.rows)} rows in {file}; {len(missed)} below their target, {len(failed)} failed")
    try:
        plot(bench.rows, file.with_suffix(".png"))
    except ImportError as error:
        print(f"no plot: {error}")


def plot(rows: list[Row], file: Path) -> None:
    """Time against the number of keys (of the window for attention), one line a variant; dashed, the machine's limit."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # One kind of keys says enough for a picture.
    drawn = [row for row in rows if row["op"] in PLOTTED and row.get("keys") != "ar1" and row.get("median_ms")]
    shapes = sorted({int(row["H"]) for row in drawn}, reverse=True) or [0]
    figure, axes = pyplot.subplots(len(PLOTTED), len(shapes), figsize=(14, 15), squeeze=False, layout="constrained")
    for line, op in enumerate(PLOTTED):
        for column, heads in enumerate(shapes):
            here = [row for row in drawn if row["op"] == op and int(row["H"]) == heads]
            if here:
                panel(axes[line][column], f"{op}, {heads} heads", here)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    print(f"plot in {file}")


def panel(axis: Any, title: str, rows: list[Row]) -> None:
    """The lines of one operation and shape."""
    decode = any(row.get("W") for row in rows)
    across = "W" if decode else "N"
    lines, limits = defaultdict(list), defaultdict(list)
    for row in rows:
        if decode and int(row["W"]) == int(row["N"]):
            axis.axhline(float(row["median_ms"]), linestyle=":", color="black", label=row["variant"])
            continue
        name = row["variant"] + (f", Q {row['Q']}" if row["op"] == "select_topk" else "")
        lines[name].append((int(row[across]), float(row["median_ms"])))
        if row["dtype"] == "bfloat16":
            limits[row["Q"]].append((int(row[across]), float(row["limit_ms"])))
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    for points in limits.values():
        axis.plot(*zip(*sorted(points), strict=True), linestyle="--", color="grey")
    axis.set(title=title, xscale="log", yscale="log", ylabel="ms", xlabel="tokens of the window" if decode else "keys")
    axis.legend(fontsize="small")


if __name__ == "__main__":
    main()
