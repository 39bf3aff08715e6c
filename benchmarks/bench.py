"""Rows of the kernel benchmark: measured, printed and kept as they come; knows no operation."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import CUDA, DEVICE, Call, Limits, Row, Times, shown, write_rows

SHAPES = ((32, 8, 128), (9, 3, 64))
"""(H, G, D) of Llama-3.1-8B and of SmolLM2-135M."""
TOYS = ((4, 2, 32), (3, 1, 16))
PAGE = 32
COLUMNS = (
    *("op", "variant", "keys", "H", "G", "D", "Q", "N", "W", "k", "dtype"),
    *("median_ms", "min_ms", "eager_ms", "runs", "rate", "unit", "limit_ms", "share_of_limit", "target", "met"),
    *("recall_at_4", "rms_error", "times_reading", "rival", "rival_ms", "speedup", "note", "timed_by"),
    *("gpu", "copy_gb_s", "matmul_tflop_s", "torch", "triton", "transformers", "commit"),
)
PRINTED = (
    *(("op", -15), ("variant", -34), ("keys", -4), ("H", 3), ("Q", 5), ("N", 8), ("W", 6), ("median_ms", 10)),
    *(
        ("rate", 7),
        ("unit", -7),
        ("share_of_limit", 8),
        ("met", 4),
        ("recall_at_4", 7),
        ("rms_error", 9),
        ("speedup", 8),
        ("note", 0),
    ),
)
"""Columns on a printed line and their widths, those of words negative."""


class Bench:
    """Measures rows, prints them and writes the file after each, so that a run that is cut short leaves what it has.

    Args:
        limits: what the machine does at best.
        quick: toy sizes.
        file: the CSV file.
        kept: rows that are in it already and stay.
        about: columns that all rows share.
    """

    def __init__(self, limits: Limits, quick: bool, file: Path, kept: list[Row], about: Row) -> None:
        self.limits, self.quick, self.rows = limits, quick, kept
        self.shapes = TOYS if quick else SHAPES
        self._file, self._about = file, about
        _print({name: name for name, _ in PRINTED})

    def row(self, fields: Row, measure: Callable[[], Row]) -> Row:
        """One row: `fields` and what `measure` finds, or a note of why it found nothing."""
        row = {**fields, **self._about}
        try:
            row |= measure()
        except Exception as error:  # whatever happens to one kernel, the next one must be measured
            lines = str(error).strip().splitlines() or [""]
            row["note"] = f"failed: {type(error).__name__}: {lines[0][:200]}"
        self.rows.append(row)
        _print(row)
        write_rows(self._file, COLUMNS, self.rows)
        if CUDA:
            torch.cuda.empty_cache()
        return row

    def computing(self, times: Times, flop: int) -> Row:
        """Columns of an operation that the matrix-product rate limits."""
        return _figures(times, flop, self.limits.flops, 1e12, "TFLOP/s")

    def moving(self, times: Times, nbytes: int) -> Row:
        """Columns of an operation that the copy rate limits."""
        return _figures(times, nbytes, self.limits.bytes, 1e9, "GB/s")


def _print(row: Row) -> None:
    """A line of a row, at once: a run may be cut short."""
    cells = (f"{shown(row.get(name)):{'<' if width <= 0 else '>'}{abs(width) or ''}}" for name, width in PRINTED)
    print(*cells, flush=True)


def _figures(times: Times, work: int, limit: float, scale: float, unit: str) -> Row:
    best = work / limit * 1e3
    measured: Row = {"median_ms": times.median, "min_ms": times.least, "eager_ms": times.eager, "runs": times.runs}
    measured["timed_by"] = times.how
    rate = {"rate": work / times.median * 1e3 / scale, "unit": unit}
    return {**measured, **rate, "limit_ms": best, "share_of_limit": best / times.median}


def against(row: Row, rival: Row) -> Row:
    """Columns that compare a row's time with another row's; only its name where that one failed."""
    if rival.get("median_ms") is None:
        return {"rival": rival["variant"]}
    ratio = rival["median_ms"] / row["median_ms"]
    return {"rival": rival["variant"], "rival_ms": rival["median_ms"], "speedup": ratio}


def within(row: Row, factor: float, what: str) -> Row:
    """The target of an operation that should take at most `factor` times its limit."""
    return {"target": f"at most {factor} x {what}", "met": row["share_of_limit"] >= 1 / factor}


def rms_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """RMS of the difference over the RMS of the truth: a fast wrong kernel must be seen to be wrong."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def kernel(module: str, name: str) -> Callable[..., Any]:
    """A kernel of the library, imported when it is measured: one that is missing costs only its own rows."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"reattention_kernels.{module}"), name)
    return found


def calls(op: Callable[..., object], inputs: Sequence[tuple[Any, ...]], **same: Any) -> list[Call]:
    """An operation on each of some inputs, to be timed in turn."""
    return [partial(op, *each, **same) for each in inputs]


def random(*shape: int) -> torch.Tensor:
    """Normal bfloat16 numbers."""
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def index_types() -> list[torch.dtype]:
    """8-bit types that this device has: float8 from compute capability 8.9 on."""
    return [torch.int8] + ([torch.float8_e4m3fn] if CUDA and torch.cuda.get_device_capability() >= (8, 9) else [])
