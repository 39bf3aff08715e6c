"""Rows of the operations around pages: attention over selected ones, rotating and writing new tokens, the vote; knows no scores."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.bench import PAGE, Bench, against, calls, index_types, kernel, random, rms_error, within
from benchmarks.reading import read_pages
from benchmarks.timing import CUDA, DEVICE, Row, copies, timed, timed_in_graph
from reattention_kernels.rotation.reference import rotate

TAIL = 32
"""Tokens of the question and answer behind the selected pages."""


def attention(bench: Bench) -> None:
    """One decoded token over W selected tokens of a corpus of N."""
    for heads, groups, dim in bench.shapes:
        n = 4096 if bench.quick else 1_048_576
        pages = random(groups, n // PAGE, PAGE, dim), random(groups, n // PAGE, PAGE, dim)
        shape: Row = {"op": "attend_selected", "H": heads, "G": groups, "D": dim, "Q": 1, "dtype": "bfloat16"}
        query = random(1, heads, 1, dim)
        everything = bench.row(
            {**shape, "variant": "torch SDPA over all N", "N": n, "W": n}, partial(_all, bench, query, pages)
        )
        for width in (256,) if bench.quick else (2048, 4096, 8192, 16_384):
            Decode(bench, {**shape, "N": n, "W": width}, query, pages).rows(everything)
        del pages


def _all(bench: Bench, query: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor]) -> Row:
    key, value = (each.flatten(1, 2)[None] for each in pages)
    return bench.moving(_attend([(query, key, value)]), key.nbytes + value.nbytes)


def _attend(inputs: list[tuple[torch.Tensor, ...]]) -> Any:
    """Time of torch's attention, by the flash backend where there is a GPU."""
    backends = [SDPBackend.FLASH_ATTENTION] if CUDA else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        return timed_in_graph(calls(F.scaled_dot_product_attention, inputs, enable_gqa=True))


class Decode:
    """All rows of one window of W tokens: selected pages, with a tail of TAIL tokens; another choice for every call."""

    def __init__(self, bench: Bench, shape: Row, query: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._bench, self._shape, self._query, self._pages = bench, shape, query, pages
        groups, self._n_pages, _, dim = pages[0].shape
        self._bytes = 2 * groups * shape["W"] * dim * 2
        chosen = (shape["W"] - TAIL) // PAGE
        self._choices = [
            torch.randperm(self._n_pages, device=DEVICE)[:chosen].sort().values for _ in range(copies(self._bytes))
        ]
        self._tail = random(1, groups, 2 * TAIL, dim), random(1, groups, 2 * TAIL, dim)
        angles = torch.outer(
            torch.arange(shape["W"] + PAGE, device=DEVICE), 1e4 ** -torch.linspace(0, 1, dim // 2, device=DEVICE)
        )
        # In the model's type, as transformers' rotary embeddings give them.
        self._cos, self._sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def rows(self, everything: Row) -> None:
        """Measure them; `everything` is torch's attention over all keys, a window being what a corpus is spared."""
        bench, shape = self._bench, self._shape
        bench.row({**shape, "variant": "a copy that moves as many bytes"}, self._copied)
        read = bench.row({**shape, "variant": "reading the same pages"}, self._read)
        bench.row({**shape, "variant": "torch SDPA, window ready"}, partial(self._ready, everything))
        bench.row({**shape, "variant": "torch gather, rotate, SDPA"}, partial(self._gathered, everything))
        bench.row({**shape, "variant": "attend_selected"}, partial(self._selected, everything, read))

    def _copied(self) -> Row:
        """What the launch and the bytes take at least: half of them read, half written, of memory side by side."""
        sources = [random(self._bytes // 4) for _ in self._choices]
        pairs = [(torch.empty_like(source), source) for source in sources]
        return self._bench.moving(timed_in_graph(calls(torch.Tensor.copy_, pairs)), self._bytes)

    def _read(self) -> Row:
        """What any attention over these pages must wait for, by the quickest of some numbers of programs."""
        groups = self._pages[0].shape[0]
        tables = [choice.to(torch.int32) for choice in self._choices]
        found = [
            timed_in_graph(calls(read_pages, [(*self._pages, pages, programs * groups) for pages in tables]), 0.1)
            for programs in (16, 33, 66, 132)
        ]
        return self._bench.moving(min(found, key=lambda times: times.median), self._bytes)

    def _ready(self, everything: Row) -> Row:
        row = self._bench.moving(_attend([self._window(choice) for choice in self._choices]), self._bytes)
        return {**row, **against(row, everything)}

    def _gathered(self, everything: Row) -> Row:
        def whole(choice: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(*self._window(choice), enable_gqa=True)

        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            times = timed_in_graph(calls(whole, [(choice,) for choice in self._choices]))
        row = self._bench.moving(times, self._bytes)
        return {**row, **against(row, everything)}

    def _selected(self, everything: Row, read: Row) -> Row:
        op = kernel("selected_attention.triton_kernel", "attend_selected")
        page_table = kernel("selected_attention.page_table", "page_table")
        filled = torch.full((self._n_pages,), PAGE, device=DEVICE)
        n_tail = torch.tensor([TAIL], dtype=torch.int32, device=DEVICE)
        rest = (*self._tail, n_tail, self._cos, self._sin)
        inputs = [(self._query, *self._pages, page_table(choice, filled), *rest) for choice in self._choices]
        scaling = self._query.shape[3] ** -0.5
        row = self._bench.moving(timed_in_graph(calls(op, inputs, scaling=scaling)), self._bytes)
        query, key, value = (x.double() for x in self._window(self._choices[0]))
        truth = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        row["rms_error"] = rms_error(op(*inputs[0], scaling=scaling), truth)
        row["times_reading"] = row["median_ms"] / read["median_ms"] if read.get("median_ms") else None
        return {**row, **within(row, 1.5, "the time to read the selected K and V"), **against(row, everything)}

    def _window(self, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, keys and values of a window, rotated: what torch's attention needs."""
        tails = (each[:, :, :TAIL] for each in self._tail)
        key, value = (
            torch.cat([each[None, :, choice].flatten(2, 3), tail], 2)
            for each, tail in zip(self._pages, tails, strict=True)
        )
        angles = self._cos, self._sin
        return rotate(self._query, *angles, key.shape[2] - 1), rotate(key, *angles), value


def rotation(bench: Bench) -> None:
    """Queries and keys of a batch of documents, as projections leave them, turned at their positions."""
    rows, length, first = (2, 70, PAGE) if bench.quick else (16, 1000, PAGE)
    for heads, groups, dim in bench.shapes:
        angle = torch.rand(first + length, dim // 2, device=DEVICE) * 6
        cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        for turned in (heads, groups):
            nbytes = 2 * rows * length * turned * dim * 2
            inputs = [random(rows, length, turned, dim).transpose(1, 2) for _ in range(copies(nbytes // 2))]
            shape: Row = {"op": "rotate", "H": turned, "G": groups, "D": dim, "N": rows * length, "dtype": "bfloat16"}
            rotate_rows_of(bench, shape, inputs, (cos, sin, first), nbytes)


def rotate_rows_of(bench: Bench, shape: Row, inputs: list[Any], angles: tuple[Any, ...], nbytes: int) -> None:
    """All rows of one shape: as transformers' models do it, and the kernel; every bit must be the same."""
    op, (cos, sin, first) = kernel("rotation.triton_kernel", "rotate"), angles
    whole = [torch.cat([part, part], 1)[first:] for part in (cos, sin)]

    def as_models_do(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return (x * whole[0]) + (torch.cat((-b, a), -1) * whole[1])

    def turned() -> Row:
        row = bench.moving(timed_in_graph(calls(op, [(x, *angles) for x in inputs])), nbytes)
        row["rms_error"] = rms_error(op(inputs[0], *angles), as_models_do(inputs[0]))
        return {**row, **against(row, slow)}

    slow = bench.row(
        {**shape, "variant": "torch, as the models do"},
        lambda: bench.moving(timed_in_graph(calls(as_models_do, [(x,) for x in inputs])), nbytes),
    )
    bench.row({**shape, "variant": "rotate"}, turned)


def writing(bench: Bench) -> None:
    """A batch of documents into pages, with and without the 8-bit index."""
    rows, length = (2, 70) if bench.quick else (32, 1000)
    for heads, groups, dim in bench.shapes:
        each = -(-length // PAGE)
        tokens = 2 * rows * groups * length * dim * 2
        fresh = [tuple(random(rows, groups, length, dim) for _ in range(2)) for _ in range(copies(tokens))]
        stored = tuple(random(groups, rows * each, PAGE, dim) for _ in range(2))
        starts = torch.arange(rows, device=DEVICE) * each * PAGE
        lengths = torch.full((rows,), length, device=DEVICE)
        shape: Row = {"op": "write_pages", "H": heads, "G": groups, "D": dim, "N": rows * length, "dtype": "bfloat16"}
        inputs = [(*stored, *new, starts, lengths) for new in fresh]
        write_rows_of(bench, shape, inputs, [int(start) for start in starts], 2 * tokens)


def write_rows_of(bench: Bench, shape: Row, inputs: list[Any], starts: list[int], nbytes: int) -> None:
    """All rows of one shape: what torch does document by document, and the kernel."""

    def one_by_one(keys: torch.Tensor, values: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> None:
        for row, start in enumerate(starts):
            keys.flatten(1, 2)[:, start : start + key.shape[2]] = key[row]
            values.flatten(1, 2)[:, start : start + key.shape[2]] = value[row]

    def written(dtype: torch.dtype | None) -> Row:
        op, more, codes = kernel("page_writing.triton_kernel", "write_pages"), {}, 0
        if dtype is not None:
            groups, pages, _, dim = inputs[0][0].shape
            scale = torch.zeros(groups, pages, device=DEVICE)
            more["index"] = kernel("key_index", "KeyIndex")(torch.zeros_like(inputs[0][0], dtype=dtype), scale)
            codes = groups * shape["N"] * dim
        row = bench.moving(timed_in_graph(calls(op, inputs, **more)), nbytes + codes)
        return {**row, **against(row, slow)}

    slow = bench.row(
        {**shape, "variant": "torch, one document at a time"},
        lambda: bench.moving(timed_in_graph(calls(one_by_one, inputs)), nbytes),
    )
    bench.row({**shape, "variant": "write_pages"}, partial(written, None))
    for dtype in index_types():
        name = f"write_pages, {str(dtype).removeprefix('torch.')} index"
        bench.row({**shape, "variant": name}, partial(written, dtype))


def votes(bench: Bench) -> None:
    """The most-voted of the keys that all heads and queries chose."""
    heads, rows, k, n, clip = (4, 16, 4, 4096, 8) if bench.quick else (32, 512, 4, 1_048_576, 127)
    # Squares of uniform numbers: some keys get many votes.
    ballots = [(torch.rand(1, heads * rows * k, device=DEVICE).square() * n).long() for _ in range(16)]
    # The ballots are read; an int64 counter for each key is cleared and read.
    nbytes = ballots[0].nbytes + 2 * 8 * n
    shape: Row = {"op": "most_voted", "H": heads, "Q": rows, "N": n, "k": k, "dtype": "int64"}

    def unique(index: torch.Tensor) -> torch.Tensor:
        distinct, counts = index.unique(return_counts=True)
        best: torch.Tensor = distinct[counts.sort(descending=True, stable=True).indices[:clip]]
        return best

    def counted() -> Row:
        op = kernel("votes.triton_kernel", "most_voted")
        row = bench.moving(timed_in_graph(calls(op, [(ballot, n, clip) for ballot in ballots])), nbytes)
        return {**row, **against(row, slow)}

    slow = bench.row(
        {**shape, "variant": "torch.unique, sort"},
        lambda: bench.moving(timed(calls(unique, [(ballot,) for ballot in ballots])), nbytes),
    )
    bench.row({**shape, "variant": "most_voted"}, counted)
