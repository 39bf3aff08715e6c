"""ReAttention's published rule, restated in plain loops and compared index for index with the library's reader."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import Pages
from reattention_core.errors import InvalidConfigError
from reattention_core.select import Context, ReAttention

DIM = 4
Vectors = list[list[list[float]]]
"""[heads][tokens][D]"""


def published(rule: ReAttention, query: Vectors, key: Vectors) -> tuple[list[int], dict[int, int]]:
    """Places in the sequence that a chunk's queries see, rising, and how many votes each kept key got.

    Sources: arXiv 2407.15176, and `cache_utils_v0921.py` of the authors' release for the vote and the clip.

    Args:
        rule: its parameters.
        query: of the chunk, which is the end of the sequence.
        key: of the whole sequence.
    """
    n = len(key[0])
    first, last = rule.global_size, n - rule.local_size
    if first >= last:
        return list(range(n)), {}
    votes: dict[int, int] = {}
    for head, rows in enumerate(query):
        keys = key[head * len(key) // len(query)]
        for row in rows:
            scores = {}
            for place in range(first, last):
                scores[place] = sum(a * b for a, b in zip(row, keys[place], strict=True))
            for place in sorted(scores, key=lambda p: (-scores[p], p))[: rule.top_k]:
                votes[place] = votes.get(place, 0) + 1
    kept = sorted(votes, key=lambda p: (-votes[p], p))[: rule.recall_clip]
    seen = [*range(first), *range(last, n)]
    for centre in kept:
        for place in range(centre - rule.span // 2, centre - rule.span // 2 + rule.span):
            if first <= place < last and place not in seen:
                seen.append(place)
    return sorted(seen), {place: votes[place] for place in kept}


def eighths(*shape: int) -> torch.Tensor:
    """Multiples of 1/8: sums of their products are exact in float32, and some are equal."""
    return torch.randint(-12, 13, shape) / 8


def corpus_of(
    lengths: list[int], groups: int, layers: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Pages, list[int]]:
    """Pages of documents of the given lengths, NaN where no token is, and the address of every token."""
    addresses, first, filled = [], [], []
    for length in lengths:
        start = len(first)
        addresses += [start * 32 + i for i in range(length)]
        while length > 0:
            first.append(start)
            filled.append(min(length, 32))
            length -= 32
    keys = []
    for _ in range(layers):
        key = torch.full((groups, len(first) * 32, DIM), float("nan"), dtype=dtype)
        key[:, addresses] = eighths(groups, len(addresses), DIM).to(dtype)
        keys.append(key.unflatten(1, (-1, 32)))
    return Pages(keys, [k.clone() for k in keys], torch.tensor(filled), torch.tensor(first)), addresses


def context(pages: Pages | None = None, window: int = 512) -> Context:
    return Context(window, 100, [1.0], [lambda x, start: x], pages)


def compare(
    rule: ReAttention,
    lengths: list[int],
    chunks: list[int],
    groups: int,
    repeats: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Read chunk after chunk and compare each window, and the evidence in the end; gives the widest window."""
    pages, addresses = corpus_of(lengths, groups, dtype=dtype) if lengths else (None, [])
    slots = 0 if pages is None else pages.n_slots
    layer, reader = ContextLayer(0, pages), rule.reader(context(pages))
    tail: list[list[list[float]]] = [[] for _ in range(groups)]
    expected_votes = [0.0] * (slots // 32)
    voted, widest = False, 0
    for chunk in chunks:
        query, key = eighths(groups * repeats, chunk, DIM), eighths(groups, chunk, DIM)
        layer.update(key[None], key[None])
        selection = reader.select(layer, query[None])
        whole = []
        for group, new in enumerate(key.tolist()):
            tail[group] += new
            below = [] if pages is None else pages.keys[0][group].flatten(0, 1)[addresses].tolist()
            whole.append(below + tail[group])
        sequence = addresses + [slots + i for i in range(len(tail[0]))]
        places, votes = published(rule, query.tolist(), whole)
        window = [*selection.addresses.tolist(), *range(slots + selection.tail_from, slots + layer.n_tail)]
        assert window == [sequence[place] for place in places]
        widest = max(widest, len(window))
        for place, count in votes.items():
            voted = True
            if sequence[place] < slots:
                expected_votes[sequence[place] // 32] += count
    if pages is not None and voted:
        assert reader.evidence is not None
        assert reader.evidence.tolist() == expected_votes
    return widest


SMALL = ReAttention(global_size=4, top_k=2, span=4, local_size=8, chunk_size=4, recall_clip=3)


@pytest.mark.parametrize("seed", range(12))
def test_the_published_rule_over_a_prompt(seed: int) -> None:
    torch.manual_seed(seed)
    assert compare(SMALL, [], [4] * 12 + [1] * 3, groups=2, repeats=2) > 12, "more than global and local"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_the_published_rule_over_pages(seed: int, dtype: torch.dtype) -> None:
    """The pages may be of a smaller type than the tail."""
    torch.manual_seed(seed)
    assert compare(SMALL, [32, 45, 7, 64], [4] * 3 + [1] * 2, groups=2, repeats=2, dtype=dtype) > 12


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_published_rule_with_any_parameters(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    torch.manual_seed(draw(0, 10**6))
    local = draw(1, 12)
    rule = ReAttention(
        global_size=draw(0, 6),
        top_k=draw(1, 5),
        span=draw(1, 7),
        local_size=local,
        chunk_size=draw(1, local),
        recall_clip=draw(1, 5),
    )
    lengths = data.draw(st.lists(st.integers(1, 40), max_size=3))
    chunks = [rule.chunk_size] * min(draw(1, 4) + 16 // rule.chunk_size, 8) + [draw(1, rule.chunk_size)]
    widest = compare(rule, lengths, chunks, groups=draw(1, 2), repeats=data.draw(st.sampled_from([1, 3])))
    assert widest <= rule.widest


@pytest.mark.parametrize("span", [1, 4, 5, 32])
def test_a_span_stands_around_its_key_half_of_it_before(span: int) -> None:
    rule = ReAttention(global_size=2, top_k=1, span=span, local_size=1, chunk_size=1, recall_clip=1)
    key = torch.zeros(1, 1, 100, DIM)
    key[0, 0, 50] = 1.0
    layer = ContextLayer(0, None)
    layer.update(key, key)
    selection = rule.reader(context()).select(layer, torch.ones(1, 1, 1, DIM))
    assert selection.addresses.tolist() == [0, 1, *range(50 - span // 2, 50 - span // 2 + span)]
    assert selection.tail_from == 99


@pytest.mark.parametrize(("at", "seen"), [(2, [2, 3]), (96, [94, 95, 96])])
def test_a_span_ends_where_the_middle_ends(at: int, seen: list[int]) -> None:
    """Of a span of 4, the key at the first place of the middle keeps 2 tokens, that at its last place 3."""
    rule = ReAttention(global_size=2, top_k=1, span=4, local_size=3, chunk_size=1, recall_clip=1)
    key = torch.zeros(1, 1, 100, DIM)
    key[0, 0, at] = 1.0
    layer = ContextLayer(0, None)
    layer.update(key, key)
    selection = rule.reader(context()).select(layer, torch.ones(1, 1, 1, DIM))
    assert (selection.addresses.tolist(), selection.tail_from) == ([0, 1, *seen], 97)


@pytest.mark.parametrize("lengths", [[], [5], [3, 2]])
def test_everything_is_read_while_it_fits_global_and_local(lengths: list[int]) -> None:
    """4 + 8 tokens fit; the 13th is the first that makes a middle, of one token, which is then always chosen."""
    pages, addresses = corpus_of(lengths, groups=1) if lengths else (None, [])
    slots = 0 if pages is None else pages.n_slots
    layer, reader = ContextLayer(0, pages), SMALL.reader(context(pages))
    for n in range(1, 14 - len(addresses)):
        layer.update(eighths(1, 1, 1, DIM), eighths(1, 1, 1, DIM))
        selection = reader.select(layer, eighths(1, 1, 1, DIM))
        window = [*selection.addresses.tolist(), *range(slots + selection.tail_from, slots + n)]
        assert window == addresses + [slots + i for i in range(n)]


def test_every_layer_votes_for_itself_and_evidence_is_their_sum() -> None:
    pages, _ = corpus_of([32, 70], groups=1, layers=2)
    query, key = eighths(1, 2, 4, DIM), eighths(1, 1, 4, DIM)
    both = SMALL.reader(context(pages))
    windows, evidence = [], torch.zeros(pages.n_pages)
    for index in range(2):
        alone, layer = SMALL.reader(context(pages)), ContextLayer(index, pages)
        layer.update(key, key)
        windows.append(both.select(layer, query).addresses.tolist())
        assert windows[index] == alone.select(layer, query).addresses.tolist()
        assert alone.evidence is not None
        evidence += alone.evidence
    assert windows[0] != windows[1]
    assert both.evidence is not None
    assert torch.equal(both.evidence, evidence)


def test_parameters_are_the_published_ones() -> None:
    """LLaMA3-8B in the authors' configuration."""
    assert ReAttention().model_dump() == {
        "global_size": 32,
        "top_k": 4,
        "span": 32,
        "local_size": 4096,
        "chunk_size": 512,
        "recall_clip": 96,
    }
    assert ReAttention().widest == 7200
    assert ReAttention.for_window(8192) == ReAttention()
    assert ReAttention(local_size=8192, recall_clip=256).widest == 16416


def test_parameters_too_wide_for_the_model_are_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidConfigError, match=r"7200 tokens .* trained on 4096: .*for_window\(4096\)"):
        ReAttention().reader(context(window=4096))
    ReAttention().reader(context(window=7200))


def test_a_chunk_must_fit_the_local_part() -> None:
    rule = SMALL.model_copy(update={"chunk_size": 9})
    with pytest.raises(InvalidConfigError, match=r"at most local_size \(8\), got 9"):
        rule.reader(context())


def test_parameters_for_a_window_fit_it() -> None:
    too_wide = [w for w in range(64, 200_001) if ReAttention.for_window(w).widest > w]
    assert too_wide == []


@pytest.mark.parametrize("window", [64, 83, 100, 512, 1000, 4095, 7199, 7200, 200_000])
def test_parameters_for_a_window_give_a_reader(window: int) -> None:
    rule = ReAttention.for_window(window)
    assert rule.reader(context(window=window)).chunk == rule.chunk_size
    assert rule.widest > window * 3 // 5 or rule == ReAttention(), "little of the window is left unused"
