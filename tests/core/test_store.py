"""Corpora on disk: what is opened answers as what was saved, equal documents lie there once, an edit writes what is new.

Faults of disk, file and process are in `tests/reliability`.
"""

import ast
import copy
import pickle
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Answer, Config, Corpus, Document, Engine
from reattention_core.errors import (
    CancelledError,
    CorpusExistsError,
    CorpusNotFoundError,
    CorruptCacheError,
    InvalidRequestError,
)
from reattention_core.models.fingerprint import fingerprint
from reattention_core.store import Store
from tests.reliability.shelf import ABOUT, Made, holds, load, made, packs, save

DOCUMENTS = [
    Document(text="The warranty of the device lasts two years. " * 6, title="Warranty", source="a/warranty.txt"),
    Document(text="The manufacturer is in Zürich 😀. " * 5, id="maker", metadata={"page": 3, "tags": ["x", None]}),
]
OTHER = Document(text="A cache keeps the keys and the values of every token the model has read. " * 4, id="cache")
QUESTION = "What is the warranty period?"


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest(DOCUMENTS, name="c", progress=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def shelf(root: Path) -> Store:
    return Store(root)


class Read:
    """Tokens that a model has read, padding included."""

    def __init__(self, engine: Engine) -> None:
        self.tokens = 0
        engine.attachment.model.base_model.layers[0].input_layernorm.register_forward_hook(self._count)

    def _count(self, module: Any, given: Any, out: torch.Tensor) -> None:
        self.tokens += out.shape[:-1].numel()

    def during(self, call: Callable[[], Any]) -> int:
        before = self.tokens
        call()
        return self.tokens - before


@pytest.fixture
def read(engine: Engine) -> Read:
    return Read(engine)


def same(one: Answer, two: Answer) -> bool:
    return (one.text, one.sources, one.finish_reason) == (two.text, two.sources, two.finish_reason)


def disk_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("mode", ["independent", "joint"])
@pytest.mark.parametrize("strategy", ["consensus", "reattention", "longheads"])
def test_an_opened_corpus_answers_as_the_one_that_was_just_read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, mode: Any, strategy: Any
) -> None:
    # Beyond the window, where longheads begins to select.
    documents = [*DOCUMENTS, Document(text="The assistant keeps the keys of every token the model has read. " * 25)]
    with Engine(model, tokenizer, Config(strategy=strategy, max_new_tokens=4, stop=()), tmp_path) as engine:
        made = engine.ingest(documents, name="c", mode=mode, progress=False)
        opened, expected = engine.open("c"), made.ask(QUESTION)
        assert same(opened.ask(QUESTION), expected)
        assert expected.sources
        assert [d.document for d in opened.documents] == documents
        assert (opened.mode, opened.name, opened.n_tokens, opened.nbytes) == (mode, "c", made.n_tokens, made.nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("summary_size", [0, 64])
def test_what_is_loaded_is_what_was_saved(shelf: Store, dtype: torch.dtype, summary_size: int) -> None:
    what = made("a", dtype=dtype, summary_size=summary_size)
    save(shelf, "c", what)
    assert holds(load(shelf, "c"), what)


@pytest.mark.parametrize("lengths", [(), (1,), (32,), (33, 1, 31, 64), (5,) * 40])
def test_documents_of_any_length_are_saved(shelf: Store, lengths: tuple[int, ...]) -> None:
    what = made("a", lengths)
    save(shelf, "c", what)
    assert holds(load(shelf, "c"), what)
    shelf.verify("c")


def test_a_corpus_can_be_opened_by_another_engine_on_an_equal_model_in_another_place(
    corpus: Corpus, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    expected = corpus.ask(QUESTION)
    engine.close()
    equal = LlamaForCausalLM(copy.deepcopy(model.config)).eval()
    equal.load_state_dict(model.state_dict())
    shutil.copytree(tmp_path / "store", tmp_path / "elsewhere")
    with Engine(equal, tokenizer, engine.config, tmp_path / "elsewhere") as again:
        assert same(again.open("c").ask(QUESTION), expected)


def test_opening_reads_no_keys_from_disk(shelf: Store, root: Path) -> None:
    """What is written to the file after opening is what is read: pages are mapped."""
    save(shelf, "c", made("a", (40, 530)))
    opened = load(shelf, "c")
    (pack,) = packs(root)
    with (pack / "pages.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80\x3f")
    with pytest.raises(Exception, match="is damaged: values of layer 1, head 1, pages 16 to 19"):
        opened.pages.read(1, 0, 20)
    with pytest.raises(Exception, match="is damaged: values of layer 1, head 1, pages 16 to 19"):
        opened.pages.scan_values(1, 17, 19)
    assert opened.pages.read(1, 0, 16)[1].shape == (2, 16, 32, 8)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_scan_of_one_head_reads_no_others(shelf: Store, root: Path, parts: int) -> None:
    """What is damaged in another head's keys is not met."""
    what = made("a", (40, 530))
    with shelf.draft("c", ABOUT) as draft:
        together = [what.documents] if parts == 1 else [[document] for document in what.documents]
        draft.publish(what.pages, [read for some in together for read in draft.write(what.pages, some)])
    assert len(packs(root)) == parts
    for pack in packs(root):
        data = bytearray((pack / "pages.safetensors").read_bytes())
        data[4096] ^= 1  # in the first layer's keys, head 0, page 0
        (pack / "pages.safetensors").write_bytes(data)
    pages = load(shelf, "c").pages
    assert torch.equal(pages.scan_head(0, 1)[0], what.pages.scan(0)[1])
    assert torch.equal(pages.scan_part(0, 2, 10, 1), what.pages.scan_part(0, 2, 10)[1:])
    assert torch.equal(pages.scan(1), what.pages.scan(1))
    assert torch.equal(pages.scan_values(0, 0, 10), what.pages.values[0][:, :10]), "values alone"
    for scan in (lambda: pages.scan_head(0, 0), lambda: pages.scan(0)):
        with pytest.raises(CorruptCacheError, match="keys of layer 0, head 0, pages 0 to"):
            scan()


def test_asking_writes_nothing(corpus: Corpus, engine: Engine, tmp_path: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}

    before = files()
    engine.open("c").ask(QUESTION)
    assert files() == before


def test_what_is_saved_can_be_read_by_its_owner_alone(shelf: Store, root: Path) -> None:
    save(shelf, "c", made("a"))
    assert [path for path in (root, *root.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_attaching_does_not_change_the_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    stock = fingerprint(model, tokenizer)
    with Engine(model, tokenizer) as engine:
        assert fingerprint(model, tokenizer) == stock
        assert stock.items() <= engine.identity.items()


# Equal documents are stored once.


def test_a_document_in_several_corpora_is_read_once_and_lies_on_disk_once(
    corpus: Corpus, engine: Engine, read: Read, tmp_path: Path
) -> None:
    before, alone = disk_bytes(tmp_path / "store"), len(packs(tmp_path / "store"))
    again: list[Corpus] = []
    renamed = [d.model_copy(update={"id": f"{d.id}2", "source": None, "metadata": {}}) for d in DOCUMENTS]
    assert read.during(lambda: again.append(engine.ingest(renamed[::-1], name="d", progress=False))) == 0
    assert len(packs(tmp_path / "store")) == alone
    assert disk_bytes(tmp_path / "store") - before < 4096  # a manifest
    assert [d.document for d in engine.open("d").documents] == renamed[::-1]
    fresh = engine.ingest(renamed[::-1], progress=False).ask(QUESTION)
    assert same(again[0].ask(QUESTION), fresh)
    assert same(engine.open("d").ask(QUESTION), fresh)


def test_what_is_shared_stays_when_one_of_the_corpora_is_removed(
    corpus: Corpus, engine: Engine, tmp_path: Path
) -> None:
    expected = corpus.ask(QUESTION)
    engine.ingest([OTHER, *DOCUMENTS], name="d", progress=False)
    engine.store.remove("d")
    assert same(engine.open("c").ask(QUESTION), expected)
    engine.store.remove("c")
    assert packs(tmp_path / "store") == []


def test_a_document_read_by_another_model_or_in_another_way_is_not_taken(
    corpus: Corpus, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    engine.close()
    changes: list[dict[str, Any]] = [{"cache_dtype": "bfloat16"}, {"sink": "Another text. " * 20}, {"reach": 64}, {}]
    for change in changes:
        with Engine(model, tokenizer, engine.config.model_copy(update=change), tmp_path / "store") as other:
            mode: Any = "independent" if change else "joint"
            before = Read(other)
            other.ingest(DOCUMENTS, name="d", mode=mode, replace=True, progress=False)
            assert before.tokens >= corpus.n_tokens, change
    with Engine(model, tokenizer, engine.config, tmp_path / "store") as other:
        before = Read(other)
        other.ingest(DOCUMENTS, name="d", replace=True, progress=False)
        assert before.tokens == 0


def test_an_edit_writes_what_is_new_and_leaves_all_other_files_alone(
    corpus: Corpus, engine: Engine, tmp_path: Path
) -> None:
    def pages() -> dict[str, int]:
        return {path.parent.name: path.stat().st_ino for path in (tmp_path / "store").rglob("pages.safetensors")}

    before = pages()
    corpus.add(OTHER, progress=False)
    after = pages()
    assert before.items() < after.items()
    new = tmp_path / "store" / ".packs" / next(iter(after.keys() - before.keys()))
    n_pages = -(-corpus.documents[-1].n_tokens // 32)
    header = 4096
    # Its pages and one of the sink; 2 layers of keys and values of 2 heads, 16 numbers of 4 bytes each.
    assert (new / "pages.safetensors").stat().st_size == header + (n_pages + 1) * 32 * 2 * 2 * 2 * 16 * 4
    corpus.remove("cache")
    assert pages() == before
    assert [d.document for d in engine.open("c").documents] == DOCUMENTS


def test_many_edits_leave_no_more_packs_than_are_needed_and_no_scattered_corpus(shelf: Store, root: Path) -> None:
    what = made("a", (40,) * 100)
    save(shelf, "c", Made(what.pages, what.documents[:1]))
    for number in range(2, 101):
        manifest = save(shelf, "c", Made(what.pages, what.documents[:number]), replace=True)
        assert {path.name for path in packs(root)} == set(manifest.packs)
    assert holds(load(shelf, "c"), what)


# An ingest that was broken off goes on.


@pytest.mark.parametrize(("how", "mode", "stopped"), [("cancelled", "independent", 12), ("failed", "joint", 45)])
def test_an_ingest_that_was_broken_off_goes_on_where_it_stopped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, how: str, mode: Any, stopped: int
) -> None:
    documents = [f"The device numbered {n} has a warranty of {n} years, as its manufacturer says." for n in range(40)]
    config = Config(cache_dtype="float32", max_new_tokens=4, stop=(), ingest_tokens=128)
    with Engine(model, tokenizer, config, tmp_path / "store") as engine:
        whole = engine.ingest(documents, mode=mode, progress=False)
        expected, passes, read = whole.ask(QUESTION), 0, Read(engine)

        def stop() -> bool:
            nonlocal passes
            passes += 1
            if passes > stopped and how == "failed":
                raise RuntimeError("cublas")
            return passes > stopped

        with pytest.raises((CancelledError, RuntimeError)):
            engine.ingest(documents, name="c", mode=mode, progress=False, cancelled=stop)
        assert (engine.store.names(), engine.store.unfinished()) == ([], ["c"])
        left = packs(tmp_path / "store")
        assert left
        done: list[Corpus] = []
        again = read.during(lambda: done.append(engine.ingest(documents, name="c", mode=mode, progress=False)))
        assert 0 < again < 0.7 * whole.n_tokens
        assert same(done[0].ask(QUESTION), expected)
        assert same(engine.open("c").ask(QUESTION), expected)
        assert {*left} <= {*packs(tmp_path / "store")}
        assert (engine.store.names(), engine.store.unfinished()) == (["c"], [])


@pytest.mark.parametrize("strategy", [None, "longheads"])
def test_documents_read_jointly_are_found_again_behind_the_same_ones_alone(
    engine: Engine, read: Read, tmp_path: Path, strategy: Any
) -> None:
    """Each was read in the light of all before it: another order, or another first document, is another reading."""
    documents = [*DOCUMENTS, OTHER]
    settings: dict[str, Any] = {"mode": "joint", "strategy": strategy, "progress": False}
    engine.ingest(documents[:2], name="c", **settings)
    fresh = engine.ingest(documents, **settings)
    expected, made = fresh.ask(QUESTION, strategy=strategy), list[Corpus]()
    assert (
        read.during(lambda: made.append(engine.ingest(documents, name="d", **settings))) == fresh.documents[2].n_tokens
    )
    for corpus in (made[0], engine.open("d")):
        assert same(corpus.ask(QUESTION, strategy=strategy), expected)
        for layer in range(2):
            for ours, theirs in zip(fresh.pages.read(layer, 0, 9), corpus.pages.read(layer, 0, 9), strict=True):
                assert torch.equal(ours, theirs)
    assert read.during(lambda: engine.ingest(documents, name="e", **settings)) == 0
    assert read.during(lambda: engine.ingest(documents[::-1], name="f", **settings)) >= fresh.n_tokens
    assert read.during(lambda: engine.ingest(documents[1:], name="g", **settings)) > 0


def test_what_an_ingest_that_was_broken_off_has_read_is_kept_until_it_is_removed(shelf: Store, root: Path) -> None:
    what = made("a")
    with pytest.raises(KeyError), shelf.draft("c", ABOUT) as draft:
        draft.write(what.pages, what.documents)
        raise KeyError
    save(shelf, "other", made("b"))
    shelf.remove("other")
    assert len(packs(root)) == 1
    assert shelf.unfinished() == ["c"]
    shelf.remove("c")
    assert packs(root) == []
    with pytest.raises(CorpusNotFoundError):
        shelf.remove("c")


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_a_process_says_how_to_have_it_in_another(corpus: Corpus, engine: Engine, how: Any) -> None:
    for one in (corpus, engine):
        with pytest.raises(TypeError, match=f"{type(one).__name__} cannot be pickled .* open that name"):
            how(one)


def test_a_corpus_that_is_removed_while_it_answers_answers_to_the_end(corpus: Corpus, engine: Engine) -> None:
    expected = corpus.ask(QUESTION).text
    stream = engine.open("c").stream(QUESTION)
    pieces = [next(stream)]
    engine.store.remove("c")
    assert "".join([*pieces, *stream]) == expected
    with pytest.raises(CorpusNotFoundError):
        engine.open("c")


# Opening is quick.


def test_a_corpus_of_100_000_tokens_opens_within_a_second(shelf: Store) -> None:
    what = made("a", (500,) * 200)
    save(shelf, "c", what)
    load(shelf, "c")
    began = time.perf_counter()
    load(shelf, "c")
    assert time.perf_counter() - began < 1.0


# Names.


NO_NAMES = [
    "../x",
    "/abs",
    "",
    ".",
    "..",
    "a/b",
    "a\\b",
    "x" * 300,
    "Upper",
    "nul\0",
    "é",
    "a b",
    "-a",
    ".stage-x",
    "c\n",
]


@pytest.mark.parametrize("name", [*NO_NAMES, 5, b"c", Path("c"), ["c"]], ids=repr)
def test_what_is_no_name_is_refused_and_nothing_is_touched(engine: Engine, tmp_path: Path, name: Any) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text("{}")
    calls: list[Callable[[], Any]] = [
        lambda: engine.open(name),
        lambda: engine.ingest(OTHER, name=name, progress=False),
        lambda: engine.ingest(OTHER, name=name, replace=True, progress=False),
        lambda: save(engine.store, name, made("a")),
        lambda: engine.store.remove(name),
        lambda: engine.store.manifest(name),
        lambda: engine.store.verify(name),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="corpus name"):
            call()
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert files == ["x/manifest.json"]


def test_a_link_is_no_corpus(shelf: Store, root: Path, tmp_path: Path) -> None:
    save(shelf, "c", made("a"))
    (tmp_path / "outside").mkdir()
    (root / "d").symlink_to(tmp_path / "outside")
    for call in (
        lambda: load(shelf, "d"),
        lambda: save(shelf, "d", made("b"), replace=True),
        lambda: shelf.remove("d"),
    ):
        with pytest.raises(InvalidRequestError, match="is a link"):
            call()
    assert list((tmp_path / "outside").iterdir()) == []
    assert shelf.names() == ["c"]


@pytest.mark.parametrize("name", ["a", "0", "x" * 64, "a.b", "a-b_c.9", "con"])
def test_names_that_are_allowed(shelf: Store, name: str) -> None:
    what = made("a")
    save(shelf, name, what)
    assert shelf.names() == [name]
    assert holds(load(shelf, name), what)


def test_a_taken_name_is_refused_before_anything_is_read(corpus: Corpus, engine: Engine, read: Read) -> None:
    with pytest.raises(CorpusExistsError, match="replace=True"):
        engine.ingest(OTHER, name="c", progress=False)
    assert read.tokens == 0


def test_an_unknown_corpus_is_an_error_that_names_the_known_ones(shelf: Store) -> None:
    save(shelf, "c", made("a"))
    save(shelf, "other", made("b"))
    for call in (shelf.manifest, shelf.remove, shelf.verify, lambda name: load(shelf, name)):
        with pytest.raises(CorpusNotFoundError, match=r"'d'.*there are: c, other"):
            call("d")


def test_where_nothing_was_saved_no_corpus_is_found(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFoundError, match="there are: none"):
        engine.open("c")
    assert engine.store.names() == []
    assert not (tmp_path / "store").exists()


def test_a_removed_corpus_is_gone_and_its_name_is_free(corpus: Corpus, engine: Engine, tmp_path: Path) -> None:
    opened, expected = engine.open("c"), corpus.ask(QUESTION)
    engine.store.remove("c")
    assert engine.store.names() == packs(tmp_path / "store") == []
    assert same(opened.ask(QUESTION), expected)
    engine.ingest(DOCUMENTS, name="c", progress=False)
    assert same(engine.open("c").ask(QUESTION), expected)


def test_no_file_of_the_package_unpickles_or_runs_text() -> None:
    root = Path(__file__).parents[2]
    found = []
    files = [f for part in ("reattention_core", "kernels", "integrations") for f in (root / part).rglob("*.py")]
    assert len(files) > 40
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Call):
                names = [f"call {ast.unparse(node.func)}"]
            banned = r"_?(pickle|cloudpickle|dill|joblib|marshal|shelve)\b|torch\.load$|call (torch\.load|eval|exec|__import__)$"
            found += [f"{file.relative_to(root)}:{node.lineno}: {name}" for name in names if re.match(banned, name)]
    assert found == []
