"""Rows of the operations that score every key: exact top-k and the evidence of pages; knows no windows."""

from contextlib import suppress
from functools import partial

import torch

from benchmarks.bench import PAGE, Bench, against, calls, index_types, kernel, random, rms_error, within
from benchmarks.timing import DEVICE, Row, copies, timed, timed_in_graph
from reattention_kernels.key_index import KeyIndex

K = 4
RHO = 0.8
QUESTION = 40
"""Tokens of a question."""


def make_keys(kind: str, groups: int, n: int, dim: int) -> torch.Tensor:
    """Keys [G, N, D] bfloat16: `iid`, or `ar1`, where neighbours along N are correlated by RHO, as those of a text are."""
    out = torch.empty(groups, n, dim, device=DEVICE, dtype=torch.bfloat16)
    for group in out:
        x = torch.randn(n, dim, device=DEVICE)
        if kind == "ar1":
            for step in (1, 2, 4, 8, 16, 32):  # each doubles the terms of sum_j RHO^j e[t - j]
                x[step:] = x[step:] + RHO**step * x[:-step]
            x *= (1 - RHO**2) ** 0.5
        group.copy_(x)
    return out


def make_index(key: torch.Tensor, dtype: torch.dtype) -> KeyIndex:
    """The 8-bit index of keys [G, N, D], one scale a page."""
    pages = key.unflatten(1, (-1, PAGE))
    codes, scales = torch.empty_like(pages, dtype=dtype), []
    top = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    for group, out in zip(pages, codes, strict=True):
        scale = group.abs().amax((1, 2)).float().clamp(min=1e-12) / top
        scaled = group.float() / scale[:, None, None]
        out.copy_(scaled.round() if dtype == torch.int8 else scaled)
        scales.append(scale)
    return KeyIndex(codes, torch.stack(scales))


def recall(found: torch.Tensor, truth: torch.Tensor | None) -> float | None:
    """Share of the true indices [..., k] that were found; nothing where the truth is not known."""
    return None if truth is None else float((truth[..., None] == found[..., None, :]).any(-1).double().mean())


def topk(bench: Bench) -> None:
    """Exact top-k, its 8-bit forms and the published approximate rule."""
    for heads, groups, dim in bench.shapes:
        for n in (384,) if bench.quick else (131_072, 1_048_576):
            for kind in ("iid", "ar1"):
                keys = [make_keys(kind, groups, n, dim)[None] for _ in range(copies(groups * n * dim * 2))]
                for rows in (6,) if bench.quick else (512, 2048):
                    shape = {"keys": kind, "H": heads, "G": groups, "D": dim, "Q": rows, "N": n, "k": K}
                    TopK(bench, {"op": "select_topk", **shape}, random(1, heads, rows, dim), keys).rows()


class TopK:
    """All rows of one shape, for queries [1, H, Q, D] and keys [1, G, N, D]."""

    def __init__(self, bench: Bench, shape: Row, query: torch.Tensor, keys: list[torch.Tensor]) -> None:
        self._bench, self._shape, self._query, self._keys = bench, shape, query, keys
        self._flop = 2 * query.numel() * keys[0].shape[2]
        self._truth: torch.Tensor | None = None
        with suppress(Exception):  # what is wrong, the row of the exact kernel says
            self._truth = kernel("topk.triton_kernel", "select_topk")(query, keys[0], K)[1]

    def rows(self) -> None:
        """Measure them: the rivals first, since the exact kernel's row is compared with them."""
        bench, plain = self._bench, {**self._shape, "dtype": "bfloat16"}
        matrix = bench.row({**plain, "variant": "torch.topk of the score matrix"}, self._materialised)
        rule = bench.row({**plain, "variant": "one_per_block"}, self._published)
        best = bench.row({**plain, "variant": "exact"}, lambda: self._exact(matrix, rule))
        for dtype in index_types():
            name = str(dtype).removeprefix("torch.")
            bench.row({**self._shape, "variant": f"{name} index", "dtype": name}, partial(self._coded, dtype, best))

    def _materialised(self) -> Row:
        grouped = self._query[0].reshape(self._keys[0].shape[1], -1, self._query.shape[3])
        op = calls(lambda key: (grouped @ key[0].transpose(1, 2)).topk(K, -1), [(key,) for key in self._keys])
        return self._bench.computing(timed(op), self._flop)

    def _published(self) -> Row:
        op = kernel("topk.published_kernel", "one_per_block")
        row = self._bench.computing(timed_in_graph(calls(op, self._inputs())), self._flop)
        return {**row, "recall_at_4": recall(op(*self._inputs()[0])[1], self._truth)}

    def _exact(self, matrix: Row, rule: Row) -> Row:
        op = kernel("topk.triton_kernel", "select_topk")
        row = self._bench.computing(timed_in_graph(calls(op, self._inputs())), self._flop)
        share = 0.6 if self._query.shape[3] >= 128 else 0.4
        fast = row["share_of_limit"] >= share and row["median_ms"] < rule.get("median_ms", float("inf"))
        row |= {"target": f"at least {share:.0%} of the product rate, and faster than one_per_block", "met": fast}
        # Against torch in float32, for some rows of one head.
        some = (self._query[0, 0, :64].float() @ self._keys[0][0, 0].float().T).topk(K, -1).indices
        return {**row, **against(row, matrix), "recall_at_4": recall(op(*self._inputs()[0])[1][0, 0, :64], some)}

    def _coded(self, dtype: torch.dtype, best: Row) -> Row:
        op = kernel("topk.triton_kernel", "select_topk")
        inputs = [(*each, None, make_index(each[1][0], dtype)) for each in self._inputs()]
        row = self._bench.computing(timed_in_graph(calls(op, inputs)), self._flop)
        row |= {"recall_at_4": recall(op(*inputs[0])[1], self._truth), **against(row, best)}
        met = row.get("speedup", 0) >= 1.5 and (row["recall_at_4"] or 0) >= 0.98
        return {**row, "target": "at least 1.5 x as fast as exact, recall at least 0.98", "met": met}

    def _inputs(self) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        return [(self._query, key, K) for key in self._keys]


def evidence(bench: Bench) -> None:
    """Softmax mass of every page for a short question."""
    for heads, groups, dim in bench.shapes:
        for n in (512,) if bench.quick else (65_536, 262_144, 1_048_576, 4_194_304):
            keys = [
                make_keys("iid", groups, n, dim).unflatten(1, (-1, PAGE)) for _ in range(copies(groups * n * dim * 2))
            ]
            shape: Row = {
                "op": "page_evidence",
                "keys": "iid",
                "H": heads,
                "G": groups,
                "D": dim,
                "Q": QUESTION,
                "N": n,
            }
            evidence_of(bench, shape, random(heads, QUESTION, dim), keys)


def evidence_of(bench: Bench, shape: Row, query: torch.Tensor, keys: list[torch.Tensor]) -> None:
    """All rows of one shape, for queries [H, Q, D] and keys [G, P, T, D]."""
    groups, pages = keys[0].shape[:2]
    scaling, filled = query.shape[2] ** -0.5, torch.full((pages,), PAGE, device=DEVICE)

    def softmax(key: torch.Tensor) -> torch.Tensor:
        scores = query.reshape(groups, -1, query.shape[2]) @ key.flatten(1, 2).transpose(1, 2)
        mass = scores.float().mul_(scaling).softmax(-1).unflatten(-1, (-1, PAGE)).sum(-1)
        mean: torch.Tensor = mass.reshape(*query.shape[:2], -1).mean(1)
        return mean

    def materialised() -> Row:
        return bench.moving(timed(calls(softmax, [(key,) for key in keys])), keys[0].nbytes)

    def exact() -> Row:
        op = kernel("evidence.triton_kernel", "page_evidence")
        inputs = [(query, key, filled, scaling) for key in keys]
        row = bench.moving(timed_in_graph(calls(op, inputs)), keys[0].nbytes)
        part = keys[0][:, : 2048 // PAGE]
        row["rms_error"] = rms_error(op(query, part, filled[: part.shape[1]], scaling), softmax(part))
        return {**row, **within(row, 1.5, "the time to read K once"), **against(row, matrix)}

    def coded(dtype: torch.dtype) -> Row:
        op = kernel("evidence.triton_kernel", "page_evidence")
        inputs = [(query, make_index(key.flatten(1, 2), dtype), filled, scaling) for key in keys]
        row = bench.moving(timed_in_graph(calls(op, inputs)), sum(t.nbytes for t in inputs[0][1]))
        return {**row, **within(row, 1.5, "the time to read the index once"), **against(row, best)}

    plain = {**shape, "dtype": "bfloat16"}
    matrix = bench.row({**plain, "variant": "torch softmax of the score matrix"}, materialised)
    best = bench.row({**plain, "variant": "exact"}, exact)
    for dtype in index_types():
        name = str(dtype).removeprefix("torch.")
        bench.row({**shape, "variant": f"{name} index", "dtype": name}, partial(coded, dtype))
