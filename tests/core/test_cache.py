"""The cache's parts by themselves: storage that grows, shared pages, and the private tail over them."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from reattention_core.cache.growing import Growing
from reattention_core.cache.kv_cache import ContextCache, ContextLayer
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages, pages_for
from reattention_core.models.attach import Attachment
from reattention_core.positions import Rotation
from reattention_core.select import Context, LongHeads, Reader, ReAttention, Selection
from reattention_core.select.fixed import Everything
from tests.close import assert_close

CPU = torch.device("cpu")


def tokens(n: int, batch: int = 1, groups: int = 2, dim: int = 4) -> torch.Tensor:
    return torch.randn(batch, groups, n, dim)


def test_growing_holds_what_was_appended() -> None:
    growing, parts = Growing(), []
    for n in (1, 31, 1, 64, 5, 200, 0, 33):
        parts.append(tokens(n, batch=3))
        growing.append(parts[-1])
        assert torch.equal(growing.tokens, torch.cat(parts, 2))
        assert growing.n == sum(part.shape[2] for part in parts)


def test_growing_is_copied_a_logarithmic_number_of_times() -> None:
    growing, one, places = Growing(), tokens(1), []
    for _ in range(5000):
        growing.append(one)
        if not places or growing.tokens.data_ptr() != places[-1]:
            places.append(growing.tokens.data_ptr())
    assert len(places) <= 10, "32, 64, 128, ... 8192 tokens are 9 sizes"
    assert growing.nbytes <= 2 * growing.tokens.nbytes
    assert growing.nbytes % (32 * 2 * 4 * 4) == 0, "whole pages of 2 heads, 4 dimensions, 4 bytes"


def test_growing_grows_at_once_to_what_is_appended_at_once() -> None:
    growing = Growing()
    assert growing.nbytes == 0
    growing.append(tokens(70))
    assert growing.nbytes == 96 * 2 * 4 * 4


def test_growing_forgets_the_last_tokens_and_goes_on() -> None:
    growing, first, second = Growing(), tokens(40), tokens(30)
    growing.append(first)
    growing.crop(15)
    assert torch.equal(growing.tokens, first[:, :, :25])
    growing.append(second)
    assert torch.equal(growing.tokens, torch.cat([first[:, :, :25], second], 2))
    growing.crop(1000)
    assert growing.tokens.shape == (1, 2, 0, 4)
    growing.append(second)
    assert torch.equal(growing.tokens, second)


def test_growing_keeps_rows_in_the_order_given() -> None:
    growing, first, second = Growing(), tokens(5, batch=3), tokens(2, batch=3)
    growing.append(first)
    growing.take_rows(torch.tensor([2, 0, 2]))
    growing.append(second)
    assert torch.equal(growing.tokens, torch.cat([first[[2, 0, 2]], second], 2))
    growing.take_rows(torch.tensor([1]))
    assert torch.equal(growing.tokens, torch.cat([first[[0]], second[[1]]], 2))


def test_growing_has_nothing_to_show_before_the_first_append() -> None:
    with pytest.raises(RuntimeError, match="nothing was appended"):
        _ = Growing().tokens


DOCUMENTS = [32, 33, 1, 64, 95]
"""Tokens of documents on the pages 0, 1-2, 3, 4-5 and 6-8."""

STARTS = [0, 32, 96, 128, 192]
FIRST = [0, 1, 1, 3, 4, 4, 6, 6, 6]
FILLED = [32, 32, 1, 1, 32, 32, 32, 32, 31]


def written(dtype: torch.dtype = torch.float32) -> tuple[Pages, dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Two layers, of 2 heads by 4 and 3 and of 1 head by 2 and 2; the second layer's keys and values by address."""
    pages = Pages.allocate([(2, 4, 3), (1, 2, 2)], torch.tensor(FIRST), torch.tensor(FILLED), dtype, CPU)
    held = {}
    for start, n in zip(STARTS, DOCUMENTS, strict=True):
        at, length = torch.tensor([start]), torch.tensor([n])
        pages.write(0, at, length, torch.randn(1, 2, n, 4), torch.randn(1, 2, n, 3))
        key, value = torch.randn(1, n, 2), torch.randn(1, n, 2)
        pages.write(1, at, length, key[None], value[None])
        held.update({start + i: (key[:, i], value[:, i]) for i in range(n)})
    return pages, held


def test_pages_give_back_what_was_written() -> None:
    pages, held = written()
    assert pages.addresses.tolist() == sorted(held)
    for address, (key, value) in held.items():
        assert torch.equal(pages.scan(1)[:, address // 32, address % 32], key)
        assert torch.equal(pages.gather(1, torch.tensor([address]))[1][:, 0], value)
    wanted = torch.tensor([[286, 0], [200, 64]])
    keys, values = pages.gather(1, wanted)
    assert keys.shape == values.shape == (1, 2, 2, 2)
    for row in range(2):
        for column in range(2):
            key, value = held[int(wanted[row, column])]
            assert torch.equal(keys[:, row, column], key)
            assert torch.equal(values[:, row, column], value)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 64, 65])
def test_a_page_is_filled_as_far_as_its_document_goes(n: int) -> None:
    layout = lay_out([n, 1])
    pages = Pages.allocate([(1, 2, 2)], layout.first, layout.filled, torch.float32, CPU)
    assert pages.filled.tolist() == [32, *(min(32, n - 32 * i) for i in range(pages_for(n))), 1]
    assert pages.addresses.tolist() == [*range(32 + n), layout.starts[1]]


def test_addresses_of_some_pages_follow_the_order_of_the_pages() -> None:
    pages, _ = written()
    assert pages.addresses_of(torch.tensor([2, 8, 0])).tolist() == [64, *range(256, 287), *range(32)]


def test_pages_convert_what_is_written_to_their_own_type() -> None:
    pages = Pages.allocate([(1, 2, 2)], torch.tensor([0]), torch.tensor([3]), torch.bfloat16, CPU)
    key = torch.randn(1, 3, 2)
    pages.write(0, torch.tensor([0]), torch.tensor([3]), key[None], key[None])
    keys, values = pages.gather(0, torch.arange(3))
    assert torch.equal(keys, key.bfloat16())
    assert torch.equal(values, key.bfloat16())


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (32, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (64, [0, 1, 1, 2, 3, 3, 4, 4, 5]),
        (96, [0, 1, 1, 2, 3, 3, 4, 4, 4]),
        (256, [0, 1, 1, 2, 3, 3, 4, 4, 4]),
    ],
)
def test_chunks_are_counted_within_each_document(size: int, numbers: list[int]) -> None:
    assert written()[0].chunks(size).tolist() == numbers


def test_the_bytes_of_pages_are_exact() -> None:
    """Per slot 2 * (4 + 3) + 1 * (2 + 2) numbers, for 9 pages of 32; two tables of 9 int64."""
    slots, tables = 9 * 32 * 18, 2 * 9 * 8
    assert written()[0].nbytes == slots * 4 + tables
    pages = written(torch.bfloat16)[0]
    assert pages.nbytes == slots * 2 + tables
    pages.reserve_summaries([(4, 4), (3, 2)], 64)
    assert pages.nbytes == slots * 2 + tables + 6 * (4 * 4 + 3 * 2) * 2, "6 chunks"


def test_summaries_stand_at_their_documents_chunks() -> None:
    pages = written()[0]
    pages.reserve_summaries([(4, 4), (3, 2)], 64)
    one, other = torch.randn(3, 2, 2), torch.randn(3, 1, 2)
    pages.summarise(1, 192, one)
    pages.summarise(1, 96, other)
    assert torch.equal(pages.summaries[1][:, 4:], one)
    assert torch.equal(pages.summaries[1][:, 2:3], other)
    assert pages.summaries[0].count_nonzero() == 0


@pytest.mark.parametrize("page", [1, 3, 4, 6])
def test_the_pages_before_one_are_the_same_storage(page: int) -> None:
    pages, held = written()
    pages.reserve_summaries([(4, 4), (3, 2)], 64)
    before = pages.before(page)
    assert before.n_pages == page
    assert before.addresses.tolist() == [a for a in sorted(held) if a < page * 32]
    assert before.summaries[1].shape[1] == pages.chunks(64)[page - 1] + 1
    pairs = [*zip(before.keys, pages.keys, strict=True), *zip(before.values, pages.values, strict=True)]
    pairs += zip(before.summaries, pages.summaries, strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    for address in before.addresses.tolist():
        assert torch.equal(before.gather(1, torch.tensor([address]))[0][:, 0], held[address][0])


class Counted:
    """A rotation that adds each token's position, and notes how many tokens it was given and where."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x: torch.Tensor, start: int) -> torch.Tensor:
        self.calls.append((x.shape[2], start))
        return x + torch.arange(start, start + x.shape[2])[:, None]


def over_pages(n_tail: int) -> tuple[ContextLayer, torch.Tensor, torch.Tensor]:
    """The second layer over the pages, with a tail; the tail's keys and values."""
    layer = ContextLayer(1, written()[0])
    keys, values = tokens(n_tail, 1, 1, 2), tokens(n_tail, 1, 1, 2)
    layer.update(keys, values)
    return layer, keys, values


def test_update_gives_back_just_the_new_tokens() -> None:
    layer = ContextLayer(0, None)
    for n in (3, 1, 40):
        key, value = tokens(n), tokens(n)
        ours = layer.update(key, value)
        assert torch.equal(ours[0], key)
        assert torch.equal(ours[1], value)
    assert layer.n_tail == 44


def test_a_window_is_the_selection_and_then_the_tail_at_consecutive_positions() -> None:
    layer, keys, values = over_pages(5)
    assert layer.pages is not None
    addresses = torch.tensor([0, 31, 64, 260, 288 + 1])
    ours = layer.window(Selection(addresses, 3), Counted())  # type: ignore[arg-type]
    below = layer.pages.gather(1, addresses[:4])
    for mine, page, tail in zip(ours, below, (keys, values), strict=True):
        expected = torch.cat([page[None], tail[:, :, [1, 3, 4]]], 2)
        positions = torch.arange(7)[:, None] if mine is ours[0] else 0
        assert torch.equal(mine, expected + positions)


def test_while_the_selection_is_the_same_only_new_tokens_are_rotated() -> None:
    layer, _, _ = over_pages(5)
    selection, rotation = Selection(torch.tensor([0, 31, 64])), Counted()
    layer.window(selection, rotation)
    assert rotation.calls == [(8, 0)]
    rotation.calls.clear()
    for n in (1, 1, 4):
        layer.update(tokens(n, 1, 1, 2), tokens(n, 1, 1, 2))
        kept = layer.window(selection, rotation)
    assert rotation.calls == [(1, 8), (1, 9), (4, 10)]
    fresh = layer.window(Selection(torch.tensor([0, 31, 64])), rotation)
    assert rotation.calls[3:] == [(14, 0)], "an equal selection is another one"
    assert torch.equal(kept[0], fresh[0])
    assert torch.equal(kept[1], fresh[1])


@pytest.mark.parametrize("heads", [1, 3])
def test_each_head_gathers_its_own_tokens(heads: int) -> None:
    pages = written()[0]
    layer = ContextLayer(0, pages)
    key, value = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 3)
    layer.update(key, value)
    addresses = torch.tensor(sorted({*pages.addresses.tolist(), *range(288, 294)}))
    addresses = addresses[torch.randint(0, len(addresses), (2 * heads, 3, 10))]
    keys, values = layer.gather_per_head(addresses, 2 * heads)
    for head in range(2 * heads):
        for row in range(3):
            for column, address in enumerate(addresses[head, row].tolist()):
                if address < 288:
                    own = [t[0][head // heads, address // 32, address % 32] for t in (pages.keys, pages.values)]
                else:
                    own = [t[0, head // heads, address - 288] for t in (key, value)]
                assert torch.equal(keys[head, row, column], own[0])
                assert torch.equal(values[head, row, column], own[1])


def test_a_batch_sees_the_same_pages_in_every_row() -> None:
    layer = ContextLayer(1, written(torch.bfloat16)[0])
    assert layer.pages is not None
    key = tokens(2, 3, 1, 2)
    layer.update(key, key)
    keys, _ = layer.gather(torch.tensor([5, 192, 289]))
    page = layer.pages.gather(1, torch.tensor([5, 192]))[0].float()
    assert keys.dtype == torch.float32, "the tail's type"
    assert all(torch.equal(keys[row], torch.cat([page, key[row, :, 1:]], 1)) for row in range(3))


def test_transformers_is_told_of_the_tail_alone() -> None:
    cache = ContextCache(2, Everything(), 512, written()[0])
    assert cache.get_seq_length() == 0
    cache.layers[0].update(tokens(7), tokens(7))
    assert cache.get_seq_length() == 7
    assert cache.get_mask_sizes(3, 0) == (10, 0)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.layers[0].n_slots == 288


def test_the_bytes_of_a_cache_are_those_of_its_tail_and_its_window() -> None:
    """Keys by 4 and values by 3 of 2 heads, in whole pages of 32 tokens."""
    page = 32 * 2 * (4 + 3) * 4
    cache = ContextCache(1, Everything(), 512, written()[0])
    assert cache.nbytes == 0
    cache.layers[0].update(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 3))
    assert cache.nbytes == page
    cache.layers[0].window(Selection(torch.arange(32)), Counted())  # type: ignore[arg-type]
    assert cache.nbytes == page + page * 37 // 32, "the window holds copies: 32 tokens of the corpus and 5 of the tail"


def test_crop_takes_a_negative_number() -> None:
    layer, keys, _ = over_pages(9)
    for refused in (1, 9):
        with pytest.raises(ValueError, match=f"negative number of tokens to drop, got {refused}"):
            layer.crop(refused)
    assert layer.n_tail == 9
    layer.crop(0)
    assert layer.n_tail == 9
    layer.crop(-4)
    assert torch.equal(layer.tail_keys.tokens, keys[:, :, :5])
    layer.crop(-100)
    assert layer.n_tail == 0


READERS: dict[str, Callable[[Context], Reader]] = {
    "everything": lambda context: Everything(),
    "reattention": ReAttention(global_size=4, top_k=2, span=4, local_size=16, chunk_size=16, recall_clip=4).reader,
    "longheads": LongHeads(
        chunk_size=32, attention_length=128, begin_selective_length=128, encoding_batch_size=32
    ).reader,
}


@torch.inference_mode()
def logits_of_last(attachment: Attachment, cache: ContextCache, ids: torch.Tensor) -> torch.Tensor:
    chunks = [attachment.model(i, past_key_values=cache, use_cache=True).logits for i in ids.split(16, 1)]
    return torch.cat(chunks, 1)


@pytest.mark.parametrize("reader", READERS)
def test_after_a_crop_it_is_as_if_the_tokens_had_never_been(model: PreTrainedModel, reader: str) -> None:
    ids = torch.randint(1, 500, (1, 400))
    kept, dropped, after = ids[:, :160], ids[:, 160:208], ids[:, 208:]
    with Attachment(model) as attachment:
        context = Context(attachment.window, 400, attachment.scaling, attachment.rotations)
        caches = [ContextCache(2, READERS[reader](context), attachment.window) for _ in range(2)]
        for cache in caches:
            logits_of_last(attachment, cache, kept)
        logits_of_last(attachment, caches[0], dropped)
        caches[0].crop(-48)
        assert caches[0].get_seq_length() == 160
        ours, theirs = (logits_of_last(attachment, cache, after) for cache in caches)
    assert_close(reader, ours, theirs, 1e-5)


def test_reordered_rows_go_on_as_the_beams_they_came_from(model: PreTrainedModel) -> None:
    ids = torch.randint(1, 500, (3, 20))
    rows = torch.tensor([2, 0, 2])
    following = torch.randint(1, 500, (3, 4))
    with Attachment(model) as attachment:
        one, other = (ContextCache(2, Everything(), attachment.window) for _ in range(2))
        logits_of_last(attachment, one, ids)
        one.reorder_cache(rows)
        logits_of_last(attachment, other, ids[rows])
        assert_close(
            "beams",
            logits_of_last(attachment, one, following),
            logits_of_last(attachment, other, following),
            1e-5,
        )


@torch.inference_mode()
def test_two_caches_over_the_same_pages_share_them_and_change_nothing(model: PreTrainedModel) -> None:
    """A fork copies nothing, and what one question reads and writes, the other does not notice."""
    with Attachment(model) as attachment:
        first, filled = torch.tensor([0, 0, 0]), torch.tensor([32, 32, 26])
        pages = Pages.allocate(attachment.shapes, first, filled, torch.float32, CPU)
        for index in range(2):
            new = torch.randn(2, 1, 2, 90, 16)
            pages.write(index, torch.tensor([0]), torch.tensor([90]), new[0], new[1])
        before = [t.clone() for t in (*pages.keys, *pages.values, pages.filled, pages.first)]
        one, other, alone = (ContextCache(2, Everything(), attachment.window, pages) for _ in range(3))
        assert one.nbytes == other.nbytes == 0
        for index in range(2):
            ours, theirs = one.layers[index].pages, other.layers[index].pages
            assert ours is not None and theirs is not None
            assert ours.scan(index).data_ptr() == theirs.scan(index).data_ptr() == pages.keys[index].data_ptr()
        mine, yours = torch.randint(1, 500, (2, 1, 48))
        logits = []
        for a, b in zip(mine.split(16, 1), yours.split(16, 1), strict=True):
            logits_of_last(attachment, one, a)
            logits.append(logits_of_last(attachment, other, b))
        assert_close("read alone", torch.cat(logits, 1), logits_of_last(attachment, alone, yours), 1e-6)
        one.crop(-20)
        one.reset()
    after = (*pages.keys, *pages.values, pages.filled, pages.first)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_rotation_without_positions_leaves_the_window_alone() -> None:
    layer, keys, _ = over_pages(3)
    assert torch.equal(layer.window(Selection(torch.empty(0, dtype=torch.int64), 1), Rotation())[0], keys[:, :, 1:])
