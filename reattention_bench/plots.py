"""Rows as pictures: score against length, depth and length as a heat map, recall against k, perplexity against position.

Knows rows and matplotlib; draws figures without a window, and touches no setting of matplotlib's own.
"""

from collections.abc import Sequence
from typing import Any

from reattention_bench.extras import need
from reattention_bench.rows import RECALL, Row
from reattention_bench.summary import READING, Line, label, mean, summarise

MARKERS = "osD^v<>pX*"


def _marker(number: int) -> dict[str, Any]:
    """A marker of its own for every method, smaller and smaller, so that equal lines can all be seen."""
    return {"marker": MARKERS[number % len(MARKERS)], "markersize": max(3.0, 11 - number), "alpha": 0.8}


def _show_lengths(axes: Any, lengths: Sequence[int]) -> None:
    """A logarithmic axis of tokens with the measured lengths as its only ticks."""
    axes.set_xscale("log")
    ticks = sorted(set(lengths))
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks], rotation=30)
    axes.set_xticks([], minor=True)


def _axes(title: str, width: float = 6.4) -> tuple[Any, Any]:
    figure = need("matplotlib.figure", "matplotlib", "bench").Figure(figsize=(width, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """All pictures that the rows give, by file name without ending."""
    made = {}
    parts = dict.fromkeys((row["task"], row["model"], row["settings"], row["split"]) for row in rows)
    for task, model, settings, split in parts:
        own = [r for r in rows if (r["task"], r["model"], r["settings"], r["split"]) == (task, model, settings, split)]
        lines = summarise(own)
        name = "-".join(filter(None, [task, model, _file(settings), split]))
        title = f"{task}, {model}, {split}" + (f"\n{settings}" if settings else "")
        if task == READING:
            made[f"{name}-position"] = perplexity_by_position(lines, title)
            continue
        if len({line.length for line in lines}) > 1:
            made[f"{name}-length"] = score_by_length(lines, title)
        if any(line.recall for line in lines):
            made[f"{name}-recall"] = recall_by_k(lines, title)
        for method in dict.fromkeys(map(label, own)):
            cases = [row for row in own if label(row) == method and row["depth"] and row["status"] == "ok"]
            if len({row["depth"] for row in cases}) > 1:
                made[f"{name}-{_file(method)}-depth"] = depth_by_length(cases, f"{title}\n{method}")
    return made


def score_by_length(lines: Sequence[Line], title: str) -> Any:
    """Mean score of each method over the tokens, with its 95 % interval."""
    figure, axes = _axes(title)
    for number, method in enumerate(dict.fromkeys(line.method for line in lines)):
        own = [line for line in lines if line.method == method and line.score is not None and line.interval is not None]
        if not own:
            continue
        low = [line.score - line.interval[0] for line in own]  # type: ignore[operator,index]
        high = [line.interval[1] - line.score for line in own]  # type: ignore[operator,index]
        axes.errorbar(
            [line.length for line in own],
            [line.score for line in own],
            yerr=[[max(0.0, x) for x in low], [max(0.0, x) for x in high]],
            **_marker(number),
            capsize=3,
            label=method,
        )
    _show_lengths(axes, [line.length for line in lines])
    axes.set(xlabel="tokens of documents", ylabel="score", ylim=(-0.05, 1.05))
    axes.legend(fontsize="small")
    return figure


def depth_by_length(rows: Sequence[Row], title: str) -> Any:
    """Mean score in tenths of the depth, for each length."""
    lengths = sorted({int(row["length"]) for row in rows})
    figure, axes = _axes(title, width=2.5 + max(2.0, 0.7 * len(lengths)))
    grid = []
    for tenth in range(10):
        cells = []
        for length in lengths:
            here = [r for r in rows if int(r["length"]) == length and min(int(float(r["depth"]) * 10), 9) == tenth]
            value = mean(here, "score")[0]
            cells.append(float("nan") if value is None else value)
        grid.append(cells)
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", origin="upper")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
    axes.set_yticks(range(10), [f"{tenth / 10:.1f}" for tenth in range(10)])
    axes.set(xlabel="tokens of documents", ylabel="depth, in tenths")
    figure.colorbar(image, ax=axes, label="score")
    return figure


def recall_by_k(lines: Sequence[Line], title: str) -> Any:
    """How often all gold documents are among the first k; only the longest corpus of the lines."""
    figure, axes = _axes(title)
    longest = max(line.length for line in lines)
    ranked = [line for line in lines if line.recall and line.length == longest]
    for number, line in enumerate(ranked):
        axes.plot(list(line.recall), [share for share, _ in line.recall.values()], label=line.method, **_marker(number))
    axes.set(
        xlabel=f"k, among {longest:,} tokens of documents", ylabel="evidence recall", ylim=(-0.05, 1.05), xticks=RECALL
    )
    axes.legend(fontsize="small")
    return figure


def perplexity_by_position(lines: Sequence[Line], title: str) -> Any:
    """Perplexity of the same words after more and more text."""
    figure, axes = _axes(title)
    for number, method in enumerate(dict.fromkeys(line.method for line in lines)):
        own = [line for line in lines if line.method == method and line.score is not None]
        axes.plot([line.length for line in own], [line.score for line in own], label=method, **_marker(number))
    _show_lengths(axes, [line.length for line in lines])
    if max(line.score or 0 for line in lines) > 100:  # where attention fails, it fails by orders of magnitude
        axes.set_yscale("log")
    axes.set(xlabel="position", ylabel="perplexity")
    axes.legend(fontsize="small")
    return figure


def _file(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=" else "_" for letter in text)
