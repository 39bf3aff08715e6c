"""Figures of the end-to-end benchmark: their targets, how they grow with the corpus, and a plot; measures nothing."""

import math
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks.timing import CUDA, Row, shown, write_rows

COLUMNS = (
    *("model", "dtype", "system", "size", "metric", "value", "unit", "target", "met", "note"),
    *("gpu", "torch", "triton", "transformers", "commit"),
)
EAGER, GRAPHS, STOCK = "reattention", "reattention, CUDA graphs", "stock, full attention"
PLOTTED = {"ingest time": "s", "first token": "ms", "decode": "ms a token"}
TARGETS = {  # of the bundled model on an H100, by system, size (any: None) and metric; rates at least, times at most
    (EAGER, None, "ingest"): 200_000,
    (GRAPHS, 16_000, "first token"): 80,
    (GRAPHS, 1_000_000, "first token"): 150,
    (EAGER, None, "decode"): 12,
    (GRAPHS, None, "decode"): 4,
    (EAGER, None, "decode, 1,000,000 over 16,000"): 1.1,
    (GRAPHS, None, "decode, 1,000,000 over 16,000"): 1.1,
}


class Table:
    """Rows of one model: printed and written as they come."""

    def __init__(self, file: Path, rows: list[Row], model: str, about: Row) -> None:
        self.file, self.rows, self.model, self._about = file, rows, model, about

    def add(self, system: str, size: int | str, metric: str, value: object, unit: str = "", note: str = "") -> None:
        """One figure, with its target if it has one."""
        row: Row = {"model": self.model, "system": system, "size": size, "metric": metric, "value": value, "unit": unit}
        target = TARGETS.get((system, size, metric), TARGETS.get((system, None, metric)))  # type: ignore[arg-type]
        if target is not None and CUDA and self.model == "bundled" and isinstance(value, float):
            row |= {"target": target, "met": value >= target if unit.endswith("/s") else value <= target}
        self.rows.append({**row, "note": note, **self._about})
        met = "" if "met" not in row else f"target {target:,}: {'met' if row['met'] else 'missed'}"
        cells = f"{self.model:8} {system:25} {size:>9} {metric:30} {shown(value):>10} {unit:9} {met} {note}"
        print(cells.rstrip(), flush=True)
        write_rows(self.file, COLUMNS, self.rows)

    def failed(self, system: str, size: int, metric: str, error: Exception) -> None:
        """A figure that could not be had, and why."""
        lines = str(error).strip().splitlines() or [""]
        self.add(system, size, metric, None, note=f"failed: {type(error).__name__}: {lines[0][:200]}")

    def series(self, system: str, metric: str) -> list[tuple[int, float]]:
        """A figure at all sizes."""
        mine = (r for r in self.rows if (r["model"], r["system"], r["metric"]) == (self.model, system, metric))
        return [(row["size"], row["value"]) for row in mine if isinstance(row["value"], float)]

    def growth(self) -> None:
        """How the figures grow with the corpus."""
        for system in (EAGER, GRAPHS, STOCK):
            for metric in ("ingest time", "first token", "decode"):
                points = self.series(system, metric)
                if len(points) > 1:
                    logs = [[math.log(x) for x in column] for column in zip(*points, strict=True)]
                    exponent = statistics.linear_regression(*logs).slope
                    self.add(system, "all", f"{metric}, exponent", exponent, note=f"{len(points)} sizes")
            decode = dict(self.series(system, "decode"))
            if {16_000, 1_000_000} <= set(decode):
                ratio = decode[1_000_000] / decode[16_000]
                self.add(system, "all", "decode, 1,000,000 over 16,000", ratio)


def plot(rows: list[Row], file: Path) -> None:
    """Time against corpus size, one line a model and system."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(18, 6), layout="constrained")
    for axis, (metric, unit) in zip(axes, PLOTTED.items(), strict=True):
        lines = defaultdict(list)
        for row in rows:
            if row["metric"] == metric and isinstance(row["value"], float):
                lines[f"{row['model']}, {row['system']}"].append((row["size"], row["value"]))
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=metric, xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
        axis.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    print(f"plot in {file}")
