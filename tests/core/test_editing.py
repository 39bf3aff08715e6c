"""A corpus is edited like a database: only what is new or changed is read, and what is being answered is left alone."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Answer, Config, Corpus, Document, Engine
from reattention_core.cache import stitched
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.stitched import Run, StitchedPages, onto, stitch
from reattention_core.errors import (
    CancelledError,
    CorpusExistsError,
    EmptyPromptError,
    InvalidRequestError,
    StorageFullError,
)
from reattention_core.store.draft import Draft

WORDS = ("warranty", "device", "manufacturer", "period", "assistant", "cache", "token", "quick", "brown", "fox")
QUESTION = "What is the warranty period?"


def text_of(n_words: int, seed: int) -> str:
    order = torch.randint(len(WORDS), (n_words,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[i] for i in order)


def document(number: int, n_words: int = 40, seed: int | None = None, **fields: Any) -> Document:
    return Document(text=text_of(n_words, number if seed is None else seed), id=f"d{number}", **fields)


DOCUMENTS = [document(n, n_words) for n, n_words in enumerate((40, 7, 90, 25, 130))]


class Tokens(list[int]):
    """Sizes of the batches of ids that the model was given."""

    @property
    def count(self) -> int:
        return sum(self)


@pytest.fixture
def tokens(engine: Engine) -> Tokens:
    seen = Tokens()
    embedding = engine.attachment.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda m, a: seen.append(a[0].numel()))
    return seen


@pytest.fixture
def corpus(engine: Engine, tokens: Tokens) -> Corpus:
    made = engine.ingest(DOCUMENTS, name="c", progress=False)
    tokens.clear()
    return made


def ids(corpus: Corpus) -> list[str]:
    return [read.document.id for read in corpus.documents]


def keys_and_values(corpus: Corpus) -> list[torch.Tensor]:
    return [layer.flatten(1, 2)[:, corpus.pages.addresses] for layer in (*corpus.pages.keys, *corpus.pages.values)]


def same(one: Answer, two: Answer) -> bool:
    def shown(answer: Answer) -> list[Any]:
        return [(*s.model_dump(exclude={"score"}).values(), pytest.approx(s.score, abs=1e-5)) for s in answer.sources]

    return (one.text, shown(one)) == (two.text, shown(two))


def check_as_if_read_anew(engine: Engine, corpus: Corpus, strategy: str | None = None) -> None:
    """The corpus, in memory and as it is saved, is what an ingest of its documents gives."""
    anew = engine.ingest([read.document for read in corpus.documents], strategy=strategy, progress=False)
    for now in (corpus, engine.open(str(corpus.name))):
        assert [d.document for d in now.documents] == [d.document for d in anew.documents]
        assert [d.start for d in now.documents] == [d.start for d in anew.documents]
        assert all(torch.equal(a.spans, b.spans) for a, b in zip(now.documents, anew.documents, strict=True))
        for ours, theirs in zip(
            [*keys_and_values(now), *now.pages.summaries], [*keys_and_values(anew), *anew.pages.summaries], strict=True
        ):
            assert (ours - theirs).abs().max() < 1e-5
        assert torch.equal(now.pages.first, anew.pages.first)
        assert torch.equal(now.pages.filled, anew.pages.filled)
        assert same(now.ask(QUESTION, strategy=strategy), anew.ask(QUESTION, strategy=strategy))
        assert [s.quote for s in now.find(QUESTION)] == [s.quote for s in anew.find(QUESTION)]


def test_added_documents_alone_are_read(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    new = document(9, 30)
    changes = corpus.add([new, DOCUMENTS[2]], progress=False)
    assert (changes.added, changes.unchanged, changes.reread, changes.removed) == (("d9",), ("d2",), (), ())
    assert tokens.count == corpus.documents[-1].n_tokens, "the sink is not read again either"
    assert ids(corpus) == ["d0", "d1", "d2", "d3", "d4", "d9"]
    check_as_if_read_anew(engine, corpus)


def test_removed_documents_are_gone_and_nothing_is_read(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    assert corpus.remove("d1").removed == ("d1",)
    assert corpus.remove(["d4", "d0"]).removed == ("d0", "d4")
    assert tokens.count == 0
    assert ids(corpus) == ["d2", "d3"]
    assert {s.document_id for s in corpus.ask(QUESTION).sources} <= {"d2", "d3"}
    check_as_if_read_anew(engine, corpus)


def test_refreshed_documents_stay_in_their_places_and_only_changed_ones_are_read(
    engine: Engine, corpus: Corpus, tokens: Tokens
) -> None:
    changed, moved = document(1, 60, seed=77), DOCUMENTS[3].model_copy(update={"metadata": {"page": 4}})
    changes = corpus.refresh([document(7), moved, changed], progress=False)
    assert (changes.added, changes.reread, changes.unchanged, changes.removed) == (("d7",), ("d1",), ("d3",), ())
    read = {d.document.id: d for d in corpus.documents}
    padding = 2 * max(read["d1"].n_tokens, read["d7"].n_tokens) - read["d1"].n_tokens - read["d7"].n_tokens
    assert tokens.count == read["d1"].n_tokens + read["d7"].n_tokens + padding
    assert ids(corpus) == ["d0", "d1", "d2", "d3", "d4", "d7"]
    assert read["d3"].document.metadata == {"page": 4}
    check_as_if_read_anew(engine, corpus)


def test_a_refresh_can_drop_what_is_no_longer_there(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    changes = corpus.refresh(DOCUMENTS[1:3], drop=True, progress=False)
    assert (changes.removed, changes.unchanged) == (("d0", "d3", "d4"), ("d1", "d2"))
    assert tokens.count == 0
    assert ids(corpus) == ["d1", "d2"]
    check_as_if_read_anew(engine, corpus)


def test_a_refresh_of_what_is_the_same_writes_nothing(corpus: Corpus, tokens: Tokens, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    assert corpus.refresh(DOCUMENTS, drop=True).unchanged == tuple(d.id for d in DOCUMENTS)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")} == before
    assert tokens.count == 0


def test_a_changed_file_replaces_the_one_of_its_path(engine: Engine, tokens: Tokens, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(text_of(20, ord(name)))
    corpus = engine.ingest(folder, progress=False)
    (folder / "b.txt").write_text(text_of(30, 5))
    (folder / "c.txt").unlink()
    tokens.clear()
    changes = corpus.refresh(folder, drop=True, progress=False)
    assert (len(changes.reread), len(changes.removed), len(changes.added), len(changes.unchanged)) == (1, 1, 0, 1)
    assert [Path(str(d.document.source)).name for d in corpus.documents] == ["a.txt", "b.txt"]
    assert tokens.count == corpus.documents[1].n_tokens
    assert corpus.documents[1].document.text == text_of(30, 5)


def test_documents_of_one_source_are_told_apart_by_their_ids_alone(engine: Engine) -> None:
    pages = [Document(text=text_of(20, n), source="book.pdf") for n in range(3)]
    corpus = engine.ingest(pages, progress=False)
    newer = Document(text=text_of(20, 9), source="book.pdf")
    changes = corpus.refresh([*pages[:2], newer], progress=False)
    assert changes.added == (newer.id,)
    assert len(corpus.documents) == 4


def test_reordered_documents_are_read_in_their_new_order(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    corpus.reorder(["d3", "d0"])
    assert ids(corpus) == ["d3", "d0", "d1", "d2", "d4"]
    assert tokens.count == 0
    check_as_if_read_anew(engine, corpus)


def test_corpora_are_joined_without_reading(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    other = engine.ingest([document(8), DOCUMENTS[1], document(9)], name="other", progress=False)
    tokens.clear()
    both = engine.join("c", other, name="both")
    assert tokens.count == 0
    assert ids(both) == ["d0", "d1", "d2", "d3", "d4", "d8", "d9"]
    assert ids(corpus) == [d.id for d in DOCUMENTS]
    check_as_if_read_anew(engine, both)
    with pytest.raises(CorpusExistsError):
        engine.join("c", "other", name="both")
    assert ids(engine.join("other", "both", name="both", replace=True)) == ["d8", "d1", "d9", "d0", "d2", "d3", "d4"]


def test_corpora_with_different_documents_of_one_id_are_not_joined(engine: Engine, corpus: Corpus) -> None:
    other = engine.ingest([document(0, seed=50)], progress=False)
    with pytest.raises(InvalidRequestError, match="'d0'"):
        engine.join(corpus, other)
    with pytest.raises(InvalidRequestError, match="at least one"):
        engine.join()


def test_what_longheads_keeps_is_edited_too(engine: Engine, tokens: Tokens) -> None:
    engine.ingest(DOCUMENTS, name="c", strategy="longheads", progress=False)
    corpus = engine.open("c")
    tokens.clear()
    corpus.add(document(9, 70), progress=False)
    corpus.remove(["d1", "d2"])
    corpus.reorder(["d9"])
    assert tokens.count == corpus.documents[0].n_tokens
    check_as_if_read_anew(engine, corpus, "longheads")
    plain = engine.ingest(document(7), progress=False)
    with pytest.raises(InvalidRequestError, match="same strategy"):
        engine.join(corpus, plain)


def test_what_was_read_jointly_is_not_edited(engine: Engine, corpus: Corpus) -> None:
    joint = engine.ingest(DOCUMENTS, mode="joint", progress=False)
    edits = (
        lambda: joint.add(document(9)),
        lambda: joint.refresh(document(9)),
        lambda: joint.remove("d1"),
        lambda: joint.reorder(["d1"]),
        lambda: engine.join(corpus, joint),
    )
    for edit in edits:
        with pytest.raises(InvalidRequestError, match="joint"):
            edit()
    assert ids(joint) == [d.id for d in DOCUMENTS]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda c: c.remove(["d1", "nothing"]), "'nothing'.*d0, d1"),
        (lambda c: c.reorder(["nothing"]), "'nothing'"),
        (lambda c: c.reorder(["d1", "d1"]), "'d1' is named more than once"),
        (lambda c: c.add(document(1, seed=99)), "'d1'.*refresh"),
        (lambda c: c.add([document(8), document(8, seed=1)]), "'d8'"),
        (lambda c: c.add([]), "no document"),
        (lambda c: c.refresh(["  "]), "no document"),
    ],
)
def test_an_edit_that_cannot_be_done_changes_nothing(corpus: Corpus, tokens: Tokens, edit: Any, match: str) -> None:
    before = corpus.edition
    with pytest.raises(InvalidRequestError, match=match):
        edit(corpus)
    assert corpus.edition is before
    assert tokens.count == 0


def test_a_corpus_without_documents_can_be_filled_again(engine: Engine, corpus: Corpus, tokens: Tokens) -> None:
    corpus.remove([d.id for d in DOCUMENTS])
    for empty in (corpus, engine.open("c")):
        assert (empty.n_tokens, empty.documents) == (0, ())
        with pytest.raises(EmptyPromptError, match="removed"):
            empty.ask(QUESTION)
        with pytest.raises(EmptyPromptError, match="removed"):
            empty.find(QUESTION)
    corpus.add(DOCUMENTS[:2], progress=False)
    check_as_if_read_anew(engine, corpus)


def test_a_question_goes_on_over_the_documents_it_began_with(corpus: Corpus) -> None:
    expected = corpus.ask(QUESTION)
    stream = corpus.stream(QUESTION)
    first = next(stream)
    gone = expected.sources[0].document_id
    corpus.remove(gone)
    corpus.add(document(9), progress=False)
    text = first + "".join(stream)
    assert (text, stream.answer.sources) == (expected.text, expected.sources)
    assert gone not in {s.document_id for s in corpus.ask(QUESTION).sources}


def test_edits_and_questions_from_several_threads(engine: Engine) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    failures: list[BaseException] = []

    def asks() -> None:
        for _ in range(6):
            quotes = {s.document_id: s.quote for s in corpus.ask(QUESTION).sources}
            assert all(quotes.values())

    def edits(number: int) -> None:
        for _ in range(3):
            corpus.add(document(number), progress=False)
            corpus.remove(f"d{number}")

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(asks,)) for _ in range(2)]
    threads += [threading.Thread(target=guarded, args=(edits, number)) for number in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ids(corpus) == [d.id for d in DOCUMENTS]


def test_an_edit_that_fails_leaves_memory_and_disk_as_they_were(
    engine: Engine, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, expected = corpus.edition, corpus.ask(QUESTION)

    def full(*_: Any, **__: Any) -> None:
        raise StorageFullError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(Draft, "publish", full)
        with pytest.raises(StorageFullError):
            corpus.add(document(9), progress=False)
    with pytest.raises(CancelledError):
        corpus.add(document(10), progress=False, cancelled=lambda: True)
    assert corpus.edition is before
    assert same(corpus.ask(QUESTION), expected)
    assert same(engine.open("c").ask(QUESTION), expected)


@pytest.mark.parametrize("most", [3, 64], ids=["thinned", "as they are"])
def test_any_sequence_of_edits_gives_what_reading_anew_gives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: Any, most: int
) -> None:
    monkeypatch.setattr(stitched, "MOST_RUNS", most)
    config = Config(cache_dtype="float32", max_new_tokens=4, stop=())
    with Engine(model, tokenizer, config, tmp_path / "store") as engine:
        corpus, draw, number = engine.ingest(DOCUMENTS, name="c", progress=False), random.Random(3), 10
        for _ in range(12):
            known = ids(corpus)
            match draw.randrange(4):
                case 0:
                    number += 1
                    corpus.add(document(number, draw.randrange(1, 80)), progress=False)
                case 1 if len(known) > 1:
                    corpus.remove(draw.sample(known, draw.randrange(1, max(2, len(known) // 2))))
                case 2:
                    corpus.reorder(draw.sample(known, len(known)))
                case _:
                    named = draw.choice(known)
                    newer = document(int(named[1:]), draw.randrange(1, 60), seed=draw.randrange(1000))
                    corpus.refresh(newer, progress=False)
        check_as_if_read_anew(engine, corpus)


def random_pages(lengths: list[int]) -> Pages:
    """A sink and documents of so many pages, filled, of two layers, with summaries of chunks of two pages."""
    first = [0]
    for n_pages in lengths:
        first += [len(first)] * n_pages
    filled = torch.randint(1, PAGE + 1, (len(first),))
    pages = Pages.allocate([(2, 4, 3)] * 2, torch.tensor(first), filled, torch.float32, torch.device("cpu"))
    pages.reserve_summaries([(4, 4)] * 2, 2 * PAGE)
    for tensor in (*pages.keys, *pages.values, *pages.summaries):
        tensor.normal_()
    return pages


@pytest.fixture(params=["one", "two", "many"])
def runs(request: pytest.FixtureRequest) -> Iterator[list[Run]]:
    a, b = random_pages([2, 1, 3]), random_pages([1, 4])
    runs = {
        "one": [Run(a, 0, 7)],
        "two": [Run(a, 0, 7), Run(b, 1, 6)],
        "many": [Run(b, 0, 1), Run(a, 3, 7), Run(b, 2, 6), Run(a, 1, 3), Run(b, 1, 2)],
    }
    yield runs[request.param]


def test_stitched_pages_read_as_one_tensor(runs: list[Run]) -> None:
    ours = StitchedPages(runs)
    plain = onto(ours, torch.device("cpu"))
    addresses = torch.randint(plain.n_slots, (50,))
    group, per_head = torch.tensor([0, 0, 1, 1])[:, None, None], torch.randint(plain.n_slots, (4, 3, 5))
    for layer in range(2):
        assert torch.equal(ours.scan(layer), plain.scan(layer))
        assert torch.equal(ours.keys[layer], plain.keys[layer])
        assert torch.equal(ours.values[layer], plain.values[layer])
        assert torch.equal(ours.scan_values(layer, 1, 6), plain.values[layer][:, 1:6])
        for wanted in (addresses, addresses[:0]):
            for a, b in zip(ours.gather(layer, wanted), plain.gather(layer, wanted), strict=True):
                assert torch.equal(a, b)
        for a, b in zip(
            ours.gather_per_head(layer, group, per_head), plain.gather_per_head(layer, group, per_head), strict=True
        ):
            assert torch.equal(a, b)
        assert torch.equal(ours.summaries[layer], plain.summaries[layer])
    for table in ("filled", "first", "addresses"):
        assert torch.equal(getattr(ours, table), getattr(plain, table))
    assert ours.nbytes == plain.nbytes
    assert (ours.n_layers, ours.n_pages, ours.n_slots) == (2, plain.n_pages, plain.n_slots)
    sink = ours.before(1)
    assert torch.equal(sink.keys[1], plain.keys[1][:, :1])


def test_stitching_copies_nothing_of_what_is_mostly_used() -> None:
    a, b = random_pages([2, 1, 3]), random_pages([1, 4])
    both = stitch([Run(a, 0, 7), Run(b, 1, 6)])
    assert isinstance(both, StitchedPages)
    again = stitch([Run(both, 0, 4), Run(both, 7, 12)])
    assert isinstance(again, StitchedPages)
    assert [(run.pages is a, run.pages is b, run.first, run.stop) for run in again.runs] == [
        (True, False, 0, 4),
        (False, True, 1, 6),
    ]
    assert stitch([Run(a, 0, 3), Run(a, 3, 7)]) is a


def test_on_a_device_only_what_is_of_several_pages_is_copied_and_there() -> None:
    first, filled = torch.zeros(7, dtype=torch.int64), torch.ones(7, dtype=torch.int64)
    there, here = (
        Pages.allocate([(2, 4, 3)], first, filled, torch.float32, torch.device(device)) for device in ("meta", "cpu")
    )
    assert stitch([Run(there, 0, 3), Run(there, 3, 7)]) is there
    both = stitch([Run(there, 0, 7), Run(here, 1, 6)])
    assert (both.keys[0].device.type, both.filled.device.type, both.n_pages) == ("meta", "meta", 12)


def test_what_is_hardly_used_any_more_is_let_go() -> None:
    a = random_pages([2, 1, 9])
    little = stitch([Run(a, 0, 3)])
    assert little.keys[0].untyped_storage().nbytes() < a.keys[0].nbytes
    assert torch.equal(little.keys[0], a.keys[0][:, :3])
