"""Compiles kernels for a GPU that need not be there; a program of its own, without Triton's interpreter.

    python -m tests.ops.compiling 90 CASE...

prints one JSON line for each kernel that a case launches (case, kernel, bytes of shared memory) or for its error. Nothing
is launched: the operations run on CPU tensors, and every launch stops after the compiler.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from reattention_kernels import launch
from reattention_kernels.evidence.triton_kernel import page_evidence
from reattention_kernels.key_index import KeyIndex
from reattention_kernels.page_copying.triton_kernel import copy_pages
from reattention_kernels.page_writing.triton_kernel import write_pages
from reattention_kernels.rotation.triton_kernel import rotate
from reattention_kernels.selected_attention.triton_kernel import attend_selected
from reattention_kernels.topk.published_kernel import one_per_block
from reattention_kernels.topk.triton_kernel import select_topk
from reattention_kernels.votes.triton_kernel import most_voted
from tests.ops.test_page_writing import batch
from tests.ops.test_rotation import tokens
from tests.ops.test_selected_attention import window

SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may use, by compute capability (CUDA programming guide, technical limits)."""

BF16, FP16, FP32, INT8, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn


class _Driver:
    """As much of a CUDA driver as the compiler asks for."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@triton.jit
def _broken(x):
    tl.store(x, tl.load(x) + undefined)  # noqa: F821


def index(dtype: torch.dtype, groups: int, pages: int, dim: int) -> KeyIndex:
    return KeyIndex(torch.zeros(groups, pages, 32, dim, dtype=dtype), torch.ones(groups, pages))


def topk(
    dtype: torch.dtype, dim: int, k: int = 4, *, n: int = 1024, rows: int = 64, keys: torch.dtype | None = None,
    masked: bool = False, coded: torch.dtype | None = None,
) -> None:  # fmt: skip
    query, key = torch.zeros(1, 8, rows, dim, dtype=dtype), torch.zeros(1, 2, n, dim, dtype=keys or dtype)
    allowed = torch.ones(n, dtype=torch.bool) if masked else None
    select_topk(query, key, k, allowed, None if coded is None else index(coded, 2, n // 32, dim))


def published(dtype: torch.dtype, dim: int) -> None:
    one_per_block(torch.zeros(1, 8, 64, dim, dtype=dtype), torch.zeros(1, 2, 1000, dim, dtype=dtype), 4)


def votes(weighed: bool) -> None:
    most_voted(torch.zeros(2, 60, dtype=torch.int64), 50, 3, torch.ones(2, 60) if weighed else None)


def evidence(
    dtype: torch.dtype, dim: int, *, keys: torch.dtype | None = None, coded: torch.dtype | None = None,
    pages: int = 64, some: bool = False,
) -> None:  # fmt: skip
    key = torch.zeros(2, pages, 32, dim, dtype=keys or dtype) if coded is None else index(coded, 2, pages, dim)
    heads, weights = ([5, 0], torch.ones(2)) if some else (None, None)
    page_evidence(torch.zeros(8, 40, dim, dtype=dtype), key, torch.full((pages,), 32), 0.1, heads, weights)


def attention(dtype: torch.dtype, dim: int, rows: int = 1, *, options: bool = False, **shape: Any) -> None:
    given = window("cpu", dtype, repeats=4, rows=rows, dim=dim, size=32, tail=rows, room=rows + 40, **shape)
    if options:
        given |= {"sliding_window": 13, "softcap": 30.0, "sinks": torch.zeros(8), "interleaved": True}
    attend_selected(**given)


def writing(dtype: torch.dtype, dim: int, codes: torch.dtype | None) -> None:
    write_pages(**batch("cpu", dtype, dtype, size=32, dim=dim, value_dim=dim, codes=codes))


def copying(dtype: torch.dtype, dim: int) -> None:
    numbers = torch.arange(4)
    copy_pages(*(part for _ in range(2) for part in (torch.zeros(2, 4, 32, dim, dtype=dtype), numbers)))


def rotation(dtype: torch.dtype, dim: int, width: int, *, interleaved: bool = False) -> None:
    rotate(**tokens("cpu", dtype, (2, 3, 40, dim), width), interleaved=interleaved)


CASES: dict[str, Callable[[], None]] = {
    "top-k, bfloat16": lambda: topk(BF16, 128),
    "top-k, int8 index and mask": lambda: topk(BF16, 64, masked=True, coded=INT8),
    "top-k, float32, 256 dimensions": lambda: topk(FP32, 256),
    "one per block": lambda: published(BF16, 64),
    "votes": lambda: votes(False),
    "votes by weight": lambda: votes(True),
    "evidence, some heads": lambda: evidence(BF16, 128, some=True),
    "evidence, all heads": lambda: evidence(BF16, 128),
    "evidence, int8 index": lambda: evidence(BF16, 64, coded=INT8),
    "attention": lambda: attention(BF16, 128),
    "attention, every option": lambda: attention(BF16, 64, 3, options=True),
    "writing": lambda: writing(BF16, 128, INT8),
    "copying": lambda: copying(BF16, 64),
    "rotation": lambda: rotation(BF16, 64, 64),
}

SLOW: dict[str, Callable[[], None]] = {
    **{
        f"top-k, {dtype}, {dim} dimensions": lambda dtype=dtype, dim=dim: topk(dtype, dim, masked=True)
        for dtype in (FP32, FP16, BF16)
        for dim in (80, 128, 256)
    },
    **{
        f"evidence, {dtype}, {dim} dimensions": lambda dtype=dtype, dim=dim: evidence(dtype, dim, pages=63)
        for dtype in (FP32, FP16, BF16)
        for dim in (80, 128, 256)
    },
    **{
        f"attention, {dtype}, {dim} dimensions, {rows} rows": lambda dtype=dtype, dim=dim, rows=rows: attention(
            dtype, dim, rows
        )
        for dtype in (FP32, FP16, BF16)
        for dim in (80, 256)
        for rows in (1, 32)
    },
    "top-k, 64 keys": lambda: topk(BF16, 128, 64),
    "top-k, one query": lambda: topk(BF16, 128, rows=1),
    "top-k, 2**19 keys": lambda: topk(BF16, 128, n=1 << 19),
    "top-k, 2**19 short keys": lambda: topk(BF16, 64, n=1 << 19),
    "top-k, mixed types": lambda: topk(FP32, 128, keys=BF16),
    "top-k, int8 index, 128 dimensions": lambda: topk(BF16, 128, coded=INT8),
    "top-k, int8 index, 256 dimensions": lambda: topk(BF16, 256, coded=INT8),
    "one per block, 128 dimensions": lambda: published(BF16, 128),
    "evidence, mixed types": lambda: evidence(FP32, 128, keys=BF16),
    "evidence, int8 index, 256 dimensions": lambda: evidence(BF16, 256, coded=INT8),
    "writing, float32": lambda: writing(FP32, 80, None),
    "copying, float32": lambda: copying(FP32, 80),
    "rotation, float32, of a part": lambda: rotation(FP32, 80, 32),
    "rotation, pairs side by side": lambda: rotation(FP16, 256, 64, interleaved=True),
}

FLOAT8: dict[str, Callable[[], None]] = {
    "top-k, float8 index": lambda: topk(BF16, 128, coded=FP8),
    "evidence, float8 index": lambda: evidence(BF16, 128, coded=FP8),
    "writing, float8 index": lambda: writing(BF16, 128, FP8),
}
"""From compute capability 8.9 on."""

BROKEN: dict[str, Callable[[], None]] = {"broken": lambda: _broken[(1,)](torch.zeros(1))}
"""Shows that a kernel which does not compile is seen."""


def main(capability: int, names: list[str]) -> None:
    report: dict[str, Any] = {}
    compiled = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compiled(self, *args, grid=grid, warmup=True, **options)
        print(json.dumps(report | {"kernel": self.fn.__name__, "shared": kernel.metadata.shared}), flush=True)
        return kernel

    driver.set_active(_Driver(capability))
    JITFunction.run = compile_only
    torch.cuda.get_device_capability = lambda device=None: divmod(capability, 10)
    launch._shared_memory = lambda device: SHARED[capability]
    for name in names:
        report["case"] = name
        try:
            (CASES | SLOW | FLOAT8 | BROKEN)[name]()
        except Exception as error:
            print(json.dumps(report | {"error": f"{type(error).__name__}: {error}"[-2000:]}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
