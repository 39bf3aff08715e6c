"""Attention over selected pages: the reference against token-by-token Python, the kernel against the reference."""

import math
from typing import Any

import pytest
import torch

from reattention_kernels.launch import INTERPRETED
from reattention_kernels.selected_attention import triton_kernel
from reattention_kernels.selected_attention.page_table import page_table
from reattention_kernels.selected_attention.reference import attend_selected as reference
from reattention_kernels.selected_attention.triton_kernel import attend_selected
from tests.close import assert_close

on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
RATIO = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
NAN = float("nan")


def filled_slots(n_pages: int, size: int) -> torch.Tensor:
    """Of every page: some are partly filled, some empty."""
    filled = torch.full((n_pages,), size)
    filled[1::3] = max(1, size // 2 - 1)
    filled[4::5] = 0
    return filled


def window(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    groups: int = 2,
    repeats: int = 1,
    rows: int = 1,
    dim: int = 16,
    value_dim: int | None = None,
    half: int | None = None,
    size: int = 8,
    chosen: list[int] | list[list[int]] | None = None,
    n_pages: int = 9,
    tail: int = 11,
    room: int = 20,
) -> dict[str, Any]:
    """Arguments of the operation; every slot that must not be read holds NaN.

    Pages are views of a larger allocation, some partly filled and one empty; the tail and the queries are transposed.
    """
    value_dim, half = value_dim or dim, dim // 2 if half is None else half
    chosen = [1, 3, -1, 5, 0, 4, 8, -1, 7] if chosen is None else chosen
    filled = filled_slots(n_pages, size)

    def pages(width: int) -> torch.Tensor:
        whole = torch.full((groups, n_pages + 2, size, width), NAN)
        view = whole.to(device, dtype)[:, 1:-1]
        there = torch.arange(size) < filled[:, None]
        view[:, there] = torch.randn(groups, int(there.sum()), width).to(device, dtype)
        return view

    def tokens(heads: int, n: int, width: int, n_real: int) -> torch.Tensor:
        made = torch.randn(batch, n, heads, width)
        made[:, n_real:] = NAN
        return made.to(device, dtype).transpose(1, 2)

    angles = torch.rand(filled.sum().item() * 2 + tail + 64, half) * 2 * math.pi
    table = page_table(torch.tensor(chosen, dtype=torch.int64, device=device), filled.to(device))
    return dict(
        query=tokens(groups * repeats, rows, dim, rows),
        key_pages=pages(dim),
        value_pages=pages(value_dim),
        table=table,
        tail_key=tokens(groups, room, dim, tail),
        tail_value=tokens(groups, room, value_dim, tail),
        n_tail=torch.tensor([tail], dtype=torch.int32, device=device),
        # As a scaled rotation has them (longrope, yarn): not of length 1.
        cos=1.25 * angles.cos().to(device),
        sin=1.25 * angles.sin().to(device),
        scaling=0.4,
    )


def exact(given: dict[str, Any]) -> torch.Tensor:
    """The reference in float64, of the values as rounded to the type that the kernel gets."""
    large = {"query", "key_pages", "value_pages", "tail_key", "tail_value", "cos", "sin"}
    return reference(**{name: value.double() if name in large else value for name, value in given.items()})


def check(name: str, given: dict[str, Any], ratio: float | None = None) -> torch.Tensor:
    """The kernel's result, after it was compared with the reference's; its memory held NaN before."""
    torch.use_deterministic_algorithms(True)  # fills new tensors
    try:
        assert torch.empty(1, device=given["query"].device).isnan()
        ours = attend_selected(**given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ours.dtype == given["tail_value"].dtype
    assert_close(name, ours, exact(given), ratio or RATIO[ours.dtype])
    return ours


def token_by_token(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    chosen: list[list[int]],
    filled: list[int],
    tail_key: torch.Tensor,
    tail_value: torch.Tensor,
    n_tail: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    scaling: float,
    interleaved: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: list[float] | None = None,
) -> torch.Tensor:
    """The operation in Python numbers; a pair of dimensions is a complex number, turned by a complex factor."""
    batch, heads, rows, _ = query.shape
    groups, half = len(chosen), cos.shape[1]
    out = torch.zeros(batch, heads, rows, value_pages.shape[3], dtype=torch.float64)

    def turned(x: list[float], position: int) -> list[float]:
        x = list(x)
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            z = complex(x[a], x[b]) * complex(cos[position, i].item(), sin[position, i].item())
            x[a], x[b] = z.real, z.imag
        return x

    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            where = [(page, slot) for page in chosen[g] if page >= 0 for slot in range(filled[page])]
            keys = [key_pages[g, page, slot].tolist() for page, slot in where] + tail_key[b, g, :n_tail].tolist()
            values = [value_pages[g, page, slot] for page, slot in where] + list(tail_value[b, g, :n_tail])
            keys = [turned(key, position) for position, key in enumerate(keys)]
            for q in range(rows):
                own = len(keys) - rows + q
                near = turned(query[b, h, q].tolist(), own)
                scores = []
                for key in keys[: own + 1] if sliding_window is None else keys[: own + 1][-sliding_window:]:
                    score = scaling * sum(x * y for x, y in zip(near, key, strict=True))
                    scores.append(score if softcap is None else softcap * math.tanh(score / softcap))
                weights = [math.exp(score) for score in scores]
                total = sum(weights) + (0.0 if sinks is None else math.exp(sinks[h]))
                for weight, value in zip(weights, values[own + 1 - len(weights) : own + 1], strict=True):
                    out[b, h, q] += weight / total * value.double()
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [0, 3, 4])
@pytest.mark.parametrize(
    ("sliding_window", "softcap", "sinks"),
    [(None, None, False), (6, None, False), (None, 1.5, False), (None, None, True), (3, 2.0, True)],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_reference_reads_token_by_token(
    rows: int, sliding_window: int | None, softcap: float | None, sinks: bool, half: int, interleaved: bool
) -> None:
    chosen = [[1, 3, -1, 5], [8, -1, -1, 0]]
    given = window(batch=2, repeats=3, rows=rows, dim=8, value_dim=5, half=half, size=4, chosen=chosen, tail=5, room=7)
    given |= {"sliding_window": sliding_window, "softcap": softcap, "interleaved": interleaved}
    given["sinks"] = torch.randn(6) if sinks else None
    slow = {name: value for name, value in given.items() if name != "table"}
    slow |= {"chosen": chosen, "filled": filled_slots(9, 4).tolist(), "n_tail": 5}
    slow["sinks"] = given["sinks"].tolist() if sinks else None
    expected = token_by_token(**slow)
    assert_close("in float32", reference(**given), expected, 1e-6)
    assert_close("in float64", exact(given), expected, 1e-12)


def test_a_table_says_where_pages_begin() -> None:
    filled = torch.tensor([4, 1, 0, 3])
    shared = page_table(torch.tensor([3, -1, 1, 2, 0]), filled)
    assert shared.pages.tolist() == [3, -1, 1, 2, 0]
    assert shared.starts.tolist() == [0, 3, 3, 4, 4]
    assert shared.total.tolist() == [8]
    own = page_table(torch.tensor([[0, 3], [-1, -1]]), filled)
    assert own.starts.tolist() == [[0, 4], [0, 0]]
    assert own.total.tolist() == [7, 0]
    none = page_table(torch.tensor([], dtype=torch.int64), filled)
    assert (none.pages.tolist(), none.starts.tolist(), none.total.tolist()) == ([], [], [0])
    assert {t.dtype for t in (*shared, *own, *none)} == {torch.int32}


@on_devices
@pytest.mark.parametrize("dtype", RATIO, ids=str)
@pytest.mark.parametrize(
    ("batch", "repeats", "rows", "dim", "value_dim"),
    [
        (2, 1, 1, 8, 8),
        (1, 8, 2, 64, 64),
        (1, 4, 1, 128, 128),
        (1, 3, 7, 80, 80),
        (1, 16, 1, 96, 64),
        (1, 4, 3, 256, 256),
    ],
)
def test_the_kernel_in_every_type_and_shape(
    device: str, dtype: torch.dtype, batch: int, repeats: int, rows: int, dim: int, value_dim: int
) -> None:
    shape = dict(batch=batch, repeats=repeats, rows=rows, dim=dim, value_dim=value_dim)
    given = window(device, dtype, **shape, tail=rows + 4, room=64)
    check("kernel", given | {"scaling": dim**-0.5})


@on_devices
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("sliding_window", [None, 1, 13])
def test_the_kernel_with_every_option(
    device: str, sliding_window: int | None, with_sinks: bool, softcap: float | None
) -> None:
    given = window(device, repeats=3, rows=5, chosen=[0, 3, 1], tail=9)
    sinks = torch.randn(6, device=device) if with_sinks else None
    check("kernel", given | {"sliding_window": sliding_window, "softcap": softcap, "sinks": sinks})


@on_devices
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "half"), [(16, 0), (16, 3), (80, 16), (80, 20), (48, 24)])
def test_the_kernel_turns_the_first_dimensions(device: str, dim: int, half: int, interleaved: bool) -> None:
    given = window(device, repeats=2, rows=2, dim=dim, half=half, chosen=[0, 3, 1])
    check("kernel", given | {"interleaved": interleaved, "scaling": dim**-0.5})


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_angles_may_be_of_the_models_own_type(device: str, dtype: torch.dtype) -> None:
    given = window(device, dtype, repeats=2, rows=2)
    check("kernel", given | {name: given[name].to(dtype) for name in ("cos", "sin")})


@on_devices
@pytest.mark.parametrize("size", [1, 6, 32])
def test_pages_of_any_size(device: str, size: int) -> None:
    check("kernel", window(device, repeats=4, rows=3, size=size))


@on_devices
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("by_head", [False, True])
def test_rows_of_a_batch_with_pages_of_their_own(device: str, by_head: bool, rows: int) -> None:
    """Each row gives what it gives alone; one of them reads no page."""
    chosen = torch.tensor(
        [[[1, 3, -1, 5], [8, -1, 0, 4]], [[-1, -1, -1, -1], [-1, 7, 7, 0]], [[7, 2, 1, 0], [1, 0, 3, 6]]]
    )
    chosen = chosen if by_head else chosen[:, :1]
    filled = filled_slots(9, 8).to(device)
    given = window(device, batch=3, groups=2, repeats=3, rows=rows) | {"table": page_table(chosen.to(device), filled)}
    ours = check("rows of their own", given)
    for row in range(3):
        alone = {n: given[n][row : row + 1] for n in ("query", "tail_key", "tail_value")}
        table = page_table(chosen[row].to(device) if by_head else chosen[row, 0].to(device), filled)
        assert_close("alone", ours[row : row + 1], exact(given | alone | {"table": table}), RATIO[torch.float32])


@on_devices
@pytest.mark.parametrize("chosen", [[1, 3, -1, 5], [[8, -1, 0], [-1, 4, 2]]], ids=["shared", "by head"])
def test_a_widened_table_is_the_same_window(device: str, chosen: list[Any]) -> None:
    filled = filled_slots(9, 8).to(device)
    given = window(device, batch=1, groups=2, repeats=3, rows=2)
    table = page_table(torch.tensor(chosen, device=device), filled)
    ours = check("widened", given | {"table": table.widened(8)})
    assert_close("as it was", ours, exact(given | {"table": table}), RATIO[torch.float32])


@on_devices
def test_heads_with_pages_of_their_own(device: str) -> None:
    chosen = [[0, 3, 6, 8, 5, 2], [7, -1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]]
    check("kernel", window(device, batch=2, groups=3, repeats=2, rows=4, chosen=chosen, tail=5, room=9))


@on_devices
@pytest.mark.parametrize("chosen", [[], [-1, -1], [4]], ids=["none", "padding", "an empty page"])
@pytest.mark.parametrize("rows", [1, 5])
def test_without_a_token_in_pages_the_tail_is_all(device: str, rows: int, chosen: list[int]) -> None:
    check("kernel", window(device, repeats=2, rows=rows, chosen=chosen, tail=5, room=70))


@on_devices
def test_a_query_that_sees_nothing_gives_zero(device: str) -> None:
    given = window(device, repeats=2, rows=5, chosen=[], tail=3)
    ours = check("kernel", given)
    assert (ours[:, :, :2] == 0).all()
    assert (ours[:, :, 2:] != 0).all()


@on_devices
def test_a_tail_that_is_all_queries(device: str) -> None:
    check("kernel", window(device, torch.bfloat16, repeats=4, rows=33, chosen=[0, 3], tail=33, room=33))


@on_devices
def test_scores_far_beyond_the_range_of_an_exponential(device: str) -> None:
    given = window(device, repeats=2, rows=3)
    given["query"] *= 100  # a score of 1,000 is good to 1e-4 in float32
    check("kernel", given, 1e-3)
    check("with a soft cap", given | {"softcap": 5.0})
    check("with sinks", given | {"sinks": torch.full((4,), 300.0, device=device)}, 1e-3)


@on_devices
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # numpy's, in the interpreter
def test_a_window_beyond_the_table_of_angles_is_not_a_number(device: str) -> None:
    given = window(device, repeats=2, rows=3)
    width = int(given["table"].total) + 11
    check("just long enough", given | {"cos": given["cos"][:width], "sin": given["sin"][:width]})
    ours = attend_selected(**given | {"cos": given["cos"][: width - 1], "sin": given["sin"][: width - 1]})
    assert ours[:, :, -1].isnan().all()
    assert not ours[:, :, :-1].isnan().any()


@on_devices
def test_many_parts_are_merged(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "PROGRAMS_PER_SM", 1000)
    given = window(device, groups=1, repeats=3, size=32, n_pages=22, chosen=list(range(22)))
    given["query"] *= 4  # some parts weigh much more than others
    check("kernel", given)


@on_devices
def test_two_runs_agree_in_every_bit(device: str) -> None:
    given = window(device, torch.bfloat16, repeats=3, rows=7, n_pages=20, chosen=list(range(20)))
    first = attend_selected(**given).clone()
    assert torch.equal(attend_selected(**given), first)


@on_devices
def test_the_tail_grows_under_the_same_call(device: str) -> None:
    given = window(device, repeats=4, chosen=[2, 0, 1], tail=6, room=150)

    def one_more_token() -> None:
        new = slice(int(given["n_tail"]), int(given["n_tail"]) + 1)
        for name in ("query", "tail_key", "tail_value"):
            place = given[name] if name == "query" else given[name][:, :, new]
            place.copy_(torch.randn(place.shape))
        given["n_tail"] += 1

    ours = attend_selected(**given)
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ours = attend_selected(**given)
    for _ in range(100):  # beyond some tiles of keys
        one_more_token()
        if device == "cuda":
            graph.replay()
        elif int(given["n_tail"]) in (7, 34, 65, 106):
            ours = attend_selected(**given)
        else:
            continue
        assert_close(f"after {int(given['n_tail'])} tokens", ours, exact(given), RATIO[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", RATIO, ids=str)
@pytest.mark.parametrize("rows", [1, 33, 256])
@pytest.mark.parametrize(("n_pages", "tail"), [(1, 63), (3, 100), (32, 1000), (480, 1024)])
@pytest.mark.parametrize(("repeats", "dim"), [(4, 128), (3, 64), (8, 256)])
def test_wide_windows(repeats: int, dim: int, n_pages: int, tail: int, rows: int, dtype: torch.dtype) -> None:
    chosen = torch.randperm(n_pages + 10)[:n_pages].sort().values.tolist()
    shape = dict(repeats=repeats, rows=min(rows, tail), dim=dim, tail=tail, room=tail + 100)
    given = window("cuda", dtype, **shape, size=32, n_pages=n_pages + 10, chosen=chosen) | {"scaling": dim**-0.5}
    check("kernel", given)
    if dtype == torch.bfloat16:
        sinks = torch.randn(2 * repeats, device="cuda")
        check("with every option", given | {"sliding_window": 1000, "softcap": 30.0, "sinks": sinks})


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device() -> None:
    given = window("cuda", torch.bfloat16, repeats=4, rows=3)
    attend_selected(**given)  # compiled
    pages, filled = torch.tensor([2, 0, -1, 1], device="cuda"), filled_slots(9, 8).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend_selected(**given | {"table": page_table(pages, filled)})
    finally:
        torch.cuda.set_sync_debug_mode("default")
