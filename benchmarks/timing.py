"""Measures time, and what the machine can do; knows no operation of ours.

A share of "the limit" is only as good as the limit, so both are measured first in every run: a large copy and a large
bf16 matrix product. Without a GPU everything runs on the CPU by the wall clock, for checking a program: such a row says
`wall clock` under `timed_by`, and its figures say nothing about the kernels.
"""

import csv
import importlib.metadata
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FEWEST, MOST = 5, 200
"""Runs of one measurement."""
LONG = 5.0
"""Milliseconds of a call beside which its launches do not count."""

Call = Callable[[], object]
Row = dict[str, Any]


class Times(NamedTuple):
    """Milliseconds of one call: median and least of `runs`, how they were taken, and launched one by one (`eager`)."""

    median: float
    least: float
    runs: int
    how: str
    eager: float


class Limits(NamedTuple):
    """What the machine does at best, measured.

    Attributes:
        bytes: a second. A copy of n bytes counts 2 n, since it reads and writes them: "the time to read n bytes at the copy
            rate" is half the time of copying them.
        flops: a second, of a bf16 matrix product; an m x n x k product counts 2 m n k.
    """

    bytes: float
    flops: float


def measure_limits(quick: bool = False) -> Limits:
    """Time a large copy and a large matrix product of random numbers (zeros would draw less power and run faster)."""
    size = 1 << (22 if quick else 30)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = timed([partial(target.copy_, source)])
    n = 256 if quick else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = timed([partial(torch.mm, a, b, out=out)])
    return Limits(2 * size / copy.median * 1e3, 2 * n**3 / product.median * 1e3)


def copies(nbytes: int) -> int:
    """How many sets of inputs to rotate over so that the L2 cache serves none of them."""
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size if CUDA else 0
    return max(1, min(64, -(-4 * cache // max(nbytes, 1))))


def timed(calls: Sequence[Call], seconds: float = 0.4) -> Times:
    """Time of one call, launch included.

    Args:
        calls: the same work over different inputs, taken in turn.
        seconds: roughly how long to measure for; never fewer than FEWEST runs, unless one takes longer than this.
    """
    if not CUDA:  # nothing to learn from the figure: enough that there is one
        found = _milliseconds(calls[:1])
        return Times(found[0], found[0], 1, "wall clock", found[0])
    for call in calls[:3]:  # compiles, warms up
        call()
    estimate = max(_milliseconds(calls[:1]))
    runs = max(FEWEST if estimate < seconds * 1e3 else 2, min(MOST, int(seconds * 1e3 / max(estimate, 1e-3))))
    found = _milliseconds([calls[i % len(calls)] for i in range(runs)])
    median = statistics.median(found)
    return Times(median, min(found), runs, "CUDA events", median)


def timed_in_graph(calls: Sequence[Call], seconds: float = 0.4) -> Times:
    """Time of one call inside a CUDA graph of many, so that launches are not what is measured.

    Without a GPU, where the calls cannot be captured, and for LONG calls, the eager time stands for both; `how` says so.
    """
    eager = timed(calls, seconds / 2)
    if not CUDA or eager.median > LONG:
        return eager
    many = [calls[i % len(calls)] for i in range(max(len(calls), 32))]
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in many:
                call()
    except RuntimeError as error:
        return eager._replace(how=f"CUDA events; no graph: {str(error).splitlines()[0][:100]}")
    whole = timed([graph.replay], seconds)
    return Times(whole.median / len(many), whole.least / len(many), whole.runs, "CUDA graph", eager.median)


def _milliseconds(calls: Sequence[Call]) -> list[float]:
    """How long each of some calls takes, by CUDA events, or the wall clock without a GPU."""
    if not CUDA:
        ticks = [time.perf_counter()]
        for call in calls:
            call()
            ticks.append(time.perf_counter())
        return [(b - a) * 1e3 for a, b in pairwise(ticks)]
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls]
    for call, (began, ended) in zip(calls, events, strict=True):
        began.record()
        call()
        ended.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) for began, ended in events]


def measured_commit() -> str:
    """The commit that is measured, asked for before the measuring begins."""
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip()
    return ""


def device() -> str:
    """What the model runs on."""
    return torch.cuda.get_device_name() if CUDA else "CPU"


def stamp(commit: str) -> Row:
    """What a row of figures depends on: device, versions, commit."""
    versions = {}
    for package in ("torch", "triton", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return {"gpu": device(), **versions, "torch": torch.__version__, "commit": commit or measured_commit()}


def processor_stamp(commit: str) -> Row:
    """What figures of a processor depend on."""
    return {
        "device": device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit or measured_commit(),
    }


def result_file(folder: Path, program: str, suffix: str) -> Path:
    """Where a program's results on this device go."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{program}_{device().lower().replace(' ', '_')}{suffix}"


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write all rows as CSV, in a folder that need not be there yet; floats with four significant digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: shown(value) for name, value in row.items()})


def shown(value: object) -> str:
    """A value as it stands in a CSV file or on a line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)
