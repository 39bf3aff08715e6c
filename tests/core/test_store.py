"""Corpora on disk: what is opened answers as what was saved, and no fault of disk, file or process gives half a corpus."""

import ast
import copy
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Answer, Config, Corpus, Document, Engine, store
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.errors import (
    CacheVersionError,
    CorpusError,
    CorpusExistsError,
    CorpusNotFoundError,
    CorruptCacheError,
    FingerprintMismatchError,
    InvalidRequestError,
    PartialCacheError,
    ReAttentionError,
    StorageFullError,
)
from reattention_core.models.fingerprint import fingerprint
from reattention_core.sources import ReadDocument
from reattention_core.store import SavedCorpus, Store
from tests.core.tiny_tokenizers import byte_level_bpe

DOCUMENTS = [
    Document(text="The warranty of the device lasts two years. " * 6, title="Warranty", source="a/warranty.txt"),
    Document(text="The manufacturer is in Zürich 😀. " * 5, id="maker", metadata={"page": 3, "tags": ["x", None]}),
]
OTHERS = ["A cache keeps the keys and the values of every token the model has read. " * 4]
QUESTION = "What is the warranty period?"
FILES = ["documents.json", "layer_000.safetensors", "layer_001.safetensors", "tokens.safetensors"]
CPU = torch.device("cpu")
MODEL = {"weights": "of this model"}
ABOUT = {"fingerprint": MODEL, "mode": "independent"}


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest(DOCUMENTS, name="c", progress=False)


def random_pages() -> Pages:
    """Two layers of four pages: the sink, a document of 40 tokens and one of 20."""
    layout = lay_out([40, 20])
    pages = Pages.allocate([(2, 16, 8)] * 2, layout.first, layout.filled, torch.float32, CPU)
    for layer in (*pages.keys, *pages.values):
        layer.normal_()
    return pages


def int32(spans: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(spans, dtype=torch.int32)


def read(text: str = "first") -> list[ReadDocument]:
    """The two documents of `random_pages`."""
    return [
        ReadDocument(
            Document(text=f"{text} document, of forty tokens"),
            int32([(i % 20, i % 20 + 1) for i in range(40)]),
            32,
        ),
        ReadDocument(Document(text="another document, of twenty"), int32([(i, i + 1) for i in range(20)]), 96),
    ]


def plain(documents: Sequence[ReadDocument]) -> list[tuple[Document, list[list[int]], int]]:
    return [(document.document, document.spans.tolist(), document.start) for document in documents]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pages]:
    """A folder with the corpora `c` and `other`, and the pages of the second."""
    root, pages = tmp_path_factory.mktemp("template") / "shelf", random_pages()
    Store(root).save("c", random_pages(), read(), ABOUT)
    Store(root).save("other", pages, read("other"), ABOUT)
    return root, pages


@pytest.fixture
def shelf(template: tuple[Path, Pages], tmp_path: Path) -> Iterator[Store]:
    """A store with two corpora, of which `other` must still be the same when the test is over."""
    root, pages = template
    shelf = Store(shutil.copytree(root, tmp_path / "shelf"))
    yield shelf
    assert holds(shelf.load("other", MODEL, CPU), pages, read("other"))
    with pytest.raises(CorpusNotFoundError):
        shelf.load("nothing-of-that-name", MODEL, CPU)


@pytest.fixture
def folder(shelf: Store, tmp_path: Path) -> Path:
    return tmp_path / "shelf" / "c"


def holds(saved: SavedCorpus, pages: Pages, documents: list[ReadDocument]) -> bool:
    ours, theirs = (
        [p.filled, p.first, *p.keys, *p.values, *p.summaries, torch.tensor(p.summary_size)]
        for p in (saved.pages, pages)
    )
    return plain(saved.documents) == plain(documents) and all(
        torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def same(one: Answer, two: Answer) -> bool:
    return (one.text, one.sources, one.finish_reason) == (two.text, two.sources, two.finish_reason)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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


def test_what_is_loaded_is_what_was_saved(shelf: Store) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pages = random_pages()
        pages.reserve_summaries([(4, 16)] * 2, 64)
        pages.keys = [layer.to(dtype) for layer in pages.keys]
        shelf.save("d", pages, read(), ABOUT)
        assert holds(shelf.load("d", MODEL, CPU), pages, read())
        shelf.remove("d")
    assert shelf.names() == ["c", "other"]


def test_a_corpus_can_be_opened_by_another_engine_on_an_equal_model(
    corpus: Corpus, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    expected = corpus.ask(QUESTION)
    engine.close()
    equal = LlamaForCausalLM(copy.deepcopy(model.config)).eval()
    equal.load_state_dict(model.state_dict())
    shutil.copytree(tmp_path / "store", tmp_path / "elsewhere")
    with Engine(equal, tokenizer, engine.config, tmp_path / "elsewhere") as again:
        assert same(again.open("c").ask(QUESTION), expected)


def test_opening_reads_no_keys_from_disk(shelf: Store, folder: Path) -> None:
    """What is written to the file after opening is what is read: pages are mapped."""
    opened = shelf.load("c", MODEL, CPU)
    with (folder / "layer_001.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")
    last = max((opened.pages.keys[1], opened.pages.values[1]), key=torch.Tensor.data_ptr)
    assert last.flatten()[-1] == 1.0


def test_asking_writes_nothing(corpus: Corpus, engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "c"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    engine.open("c").ask(QUESTION)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(before) == sorted([*FILES, "manifest.json"])


def test_what_is_saved_can_be_read_by_its_owner_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(folder.parent.stat().st_mode) & 0o077 == 0


def test_other_corpora_answer_while_one_is_damaged(corpus: Corpus, engine: Engine, tmp_path: Path) -> None:
    expected = engine.ingest(OTHERS, name="other", progress=False).ask(QUESTION)
    opened, folder = engine.open("other"), tmp_path / "store" / "c"
    for file in [*FILES, "manifest.json"]:
        data = (folder / file).read_bytes()
        for damaged in (b"", data[:-9], b"\xff" * len(data)):
            (folder / file).write_bytes(damaged)
            with pytest.raises(CorpusError, match="'c'"):
                engine.open("c")
            (folder / file).write_bytes(data)
        assert same(opened.ask(QUESTION), expected)
    assert same(engine.open("other").ask(QUESTION), expected)
    assert same(engine.open("c").ask(QUESTION), corpus.ask(QUESTION))


class Renamed(LlamaForCausalLM):
    pass


def in_double(model: PreTrainedModel, config: Config) -> Any:
    return {"model": model.double()}


def with_one_tensor_changed(model: PreTrainedModel, config: Config) -> Any:
    with torch.no_grad():
        model.base_model.layers[1].mlp.up_proj.weight.mul_(1.001)
    return {}


def with_two_tensors_swapped(model: PreTrainedModel, config: Config) -> Any:
    first, second = (layer.self_attn.k_proj for layer in model.base_model.layers)
    first.weight, second.weight = second.weight, first.weight
    return {}


def with_another_config(model: PreTrainedModel, config: Config) -> Any:
    model.config.rms_norm_eps = 1e-5
    return {}


def with_other_frequencies(model: PreTrainedModel, config: Config) -> Any:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 20_000.0}
    return {}


def of_another_class(model: PreTrainedModel, config: Config) -> Any:
    renamed = Renamed(model.config).eval()
    renamed.load_state_dict(model.state_dict())
    return {"model": renamed}


def with_another_token(model: PreTrainedModel, config: Config) -> Any:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<another>"])
    return {"tokenizer": tokenizer}


def with_another_sink(model: PreTrainedModel, config: Config) -> Any:
    return {"config": config.model_copy(update={"sink": "Another text. " * 20})}


def with_a_half_cache(model: PreTrainedModel, config: Config) -> Any:
    return {"config": config.model_copy(update={"cache_dtype": "bfloat16"})}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (in_double, "dtype"),
        (with_one_tensor_changed, "weights"),
        (with_two_tensors_swapped, "weights"),
        (with_another_config, "config"),
        (with_other_frequencies, "config"),
        (of_another_class, "architecture"),
        (with_another_token, "tokenizer"),
        (with_another_sink, "sink"),
        (with_a_half_cache, "cache_dtype"),
    ],
)
def test_a_corpus_of_another_model_is_refused_and_the_field_that_differs_is_named(
    corpus: Corpus,
    engine: Engine,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    change: Callable[[PreTrainedModel, Config], Any],
    field: str,
) -> None:
    engine.close()
    made = {"model": model, "tokenizer": tokenizer, "config": engine.config, **change(model, engine.config)}
    with Engine(**made, store=tmp_path / "store") as different:
        with pytest.raises(FingerprintMismatchError, match=f"{field}: saved ") as caught:
            different.open("c")
        assert caught.value.fields == (field,)
        # The name is still taken, and another one is free.
        with pytest.raises(CorpusExistsError):
            different.ingest(OTHERS, name="c", progress=False)
        assert different.ingest(OTHERS, name="mine", progress=False).ask(QUESTION).text


def test_attaching_does_not_change_the_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    stock = fingerprint(model, tokenizer)
    with Engine(model, tokenizer) as engine:
        assert fingerprint(model, tokenizer) == stock
        assert stock.items() <= engine.identity.items()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer"])
def test_a_file_of_another_length_is_a_partial_corpus(shelf: Store, folder: Path, file: str, damage: str) -> None:
    path = folder / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": data[:-1], "longer": data + b"\0"}[damage])
    with pytest.raises(PartialCacheError, match=rf"'c'.*{file}"):
        shelf.load("c", MODEL, CPU)


def test_a_corpus_without_a_manifest_is_not_found(shelf: Store, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(CorpusNotFoundError, match="there are: other"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b"\xff\xfe\x00garbage",
        b'{"format": "reattention-corpus"}',
        b'{"version": 1}',
        b'{"format": "something-else", "version": 1}',
        b'{"format": "reattention-corpus", "version": "1"}',
        b'{"format": "reattention-corpus", "version": null}',
        b'{"format": "reattention-corpus", "version": 1.5}',
        b'{"format": "reattention-corpus", "version": 1e999}',
        b'{"format": "reattention-corpus", "version": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:60]),
)
def test_a_manifest_that_is_none_of_ours_is_corrupt(shelf: Store, folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(CorruptCacheError, match="'c'"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize("version", [2, 10**6])
def test_a_newer_version_is_refused_and_not_guessed_at(shelf: Store, folder: Path, version: int) -> None:
    edit_manifest(folder, version=version, fingerprint="of a form that we do not know")
    with pytest.raises(CacheVersionError, match=rf"{version}.* 1"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize("value", [None, 5, "text", [1, 2], {"a": 1}], ids=repr)
@pytest.mark.parametrize("key", ["fingerprint", "bytes", "layers", "summary_size", "documents"])
def test_a_manifest_entry_of_the_wrong_kind_is_an_error_of_ours(
    shelf: Store, folder: Path, key: str, value: Any
) -> None:
    edit_manifest(folder, **{key: value})
    with pytest.raises(CorpusError, match="'c'"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize("key", ["fingerprint", "bytes", "layers", "summary_size", "documents", "mode"])
def test_a_manifest_without_an_entry_is_an_error_of_ours(
    corpus: Corpus, engine: Engine, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "store" / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("value", [-1, 0, 33, 10**6, 2**70, "1", None], ids=repr)
@pytest.mark.parametrize("key", ["start", "n_tokens"])
def test_a_manifest_that_lies_about_where_documents_are_is_corrupt(
    shelf: Store, folder: Path, key: str, value: Any
) -> None:
    documents = json.loads((folder / "manifest.json").read_text())["documents"]
    documents[1][key] = value
    edit_manifest(folder, documents=documents)
    with pytest.raises(CorruptCacheError, match="'c'"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize("at", [0, 8, 20, 60])
@pytest.mark.parametrize("file", ["layer_001.safetensors", "tokens.safetensors"])
def test_garbage_in_the_header_of_a_file_is_corrupt(shelf: Store, folder: Path, file: str, at: int) -> None:
    path = folder / file
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    with pytest.raises(CorruptCacheError, match="'c'"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("layer_001.safetensors", b'"keys"', b'"kiss"'),
        ("layer_001.safetensors", b'"F32"', b'"I32"'),
        ("layer_001.safetensors", b"[2,4,32,16]", b"[4,2,32,16]"),
        ("layer_001.safetensors", b"[2,4,32,16]", b"[2,4,16,32]"),
        ("tokens.safetensors", b'"I64"', b'"F64"'),
        ("tokens.safetensors", b'"I32"', b'"F32"'),
        ("tokens.safetensors", b"[60,2]", b"[2,60]"),
        ("documents.json", b'"text"', b'"tent"'),
        ("documents.json", b"[{", b"{{"),
        ("documents.json", b"first document", b"other document"),
    ],
)
def test_an_edit_that_keeps_the_size_is_corrupt(shelf: Store, folder: Path, file: str, old: bytes, new: bytes) -> None:
    data = (folder / file).read_bytes()
    assert old in data
    assert len(old) == len(new)
    (folder / file).write_bytes(data.replace(old, new, 1))
    with pytest.raises(CorruptCacheError, match="'c'"):
        shelf.load("c", MODEL, CPU)


@pytest.mark.parametrize("tensor", ["filled", "first", "spans"])
def test_a_page_table_that_points_outside_the_pages_is_corrupt(shelf: Store, folder: Path, tensor: str) -> None:
    path = folder / "tokens.safetensors"
    tensors, size = load_file(path), path.stat().st_size
    tensors[tensor][-1] = 10**6
    save_file(tensors, path)
    assert path.stat().st_size == size
    with pytest.raises(CorruptCacheError, match="'c'"):
        shelf.load("c", MODEL, CPU)


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
        lambda: engine.ingest(OTHERS, name=name, progress=False),
        lambda: engine.ingest(OTHERS, name=name, replace=True, progress=False),
        lambda: engine.store.save(name, random_pages(), read(), ABOUT),
        lambda: engine.store.remove(name),
        lambda: engine.store.manifest(name),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="corpus name"):
            call()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["x", "x/manifest.json"]


@pytest.mark.parametrize("name", ["a", "0", "x" * 64, "a.b", "a-b_c.9", "con"])
def test_names_that_are_allowed(shelf: Store, name: str) -> None:
    shelf.save(name, random_pages(), read(), ABOUT)
    assert sorted(shelf.names()) == sorted([name, "c", "other"])
    assert plain(shelf.load(name, MODEL, CPU).documents) == plain(read())


def test_an_unknown_corpus_is_an_error_that_names_the_known_ones(shelf: Store) -> None:
    for call in (shelf.manifest, shelf.remove, lambda name: shelf.load(name, MODEL, CPU)):
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
    assert engine.store.names() == list((tmp_path / "store").iterdir()) == []
    assert same(opened.ask(QUESTION), expected)
    engine.ingest(DOCUMENTS, name="c", progress=False)
    assert same(engine.open("c").ask(QUESTION), expected)


def watching(monkeypatch: pytest.MonkeyPatch, stop_at: int, error: BaseException | None) -> list[str]:
    """Every step of a save that touches the disk, by name; the one numbered `stop_at` raises the error instead."""
    steps: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if error is not None and len(steps) - 1 == stop_at:
                raise error
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (store, "save_file"),
        (os, "fsync"),
        (os, "rename"),
        (tempfile, "mkdtemp"),
        (Path, "write_text"),
    ):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    return steps


# A folder, three files of tensors, one of texts; each synced; the manifest; the folder synced, renamed, and its parent.
STEPS = ["mkdtemp", *["save_file"] * 3, "write_text", *["fsync"] * 4, "write_text", "fsync", "fsync", "rename", "fsync"]
STEPS_TO_REPLACE = [*STEPS[:-2], "mkdtemp", "rename", "rename", "fsync"]
FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_SAFETENSORS = SafetensorError("I/O error: No space left on device (os error 28)")


def test_the_steps_of_a_save(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests below break these one by one."""
    steps = watching(monkeypatch, 0, None)
    shelf.save("d", random_pages(), read(), ABOUT)
    assert steps == STEPS
    steps.clear()
    shelf.save("d", random_pages(), read(), ABOUT)
    assert steps == STEPS_TO_REPLACE


@pytest.mark.parametrize("n", range(len(STEPS_TO_REPLACE)), ids=[f"{n}-{s}" for n, s in enumerate(STEPS_TO_REPLACE)])
def test_a_disk_that_fills_up_at_any_step_leaves_the_old_corpus_or_the_new_one(
    shelf: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    old, new = shelf.load("c", MODEL, CPU), random_pages()
    error = FULL_SAFETENSORS if STEPS_TO_REPLACE[n] == "save_file" else FULL
    with monkeypatch.context() as broken:
        watching(broken, n, error)
        with pytest.raises(StorageFullError, match=r"'c'.*No space left") as caught:
            shelf.save("c", new, read("new"), ABOUT)
    assert caught.value.__cause__ is error
    assert sorted(p.name for p in folder.parent.iterdir()) == ["c", "other"]
    found = shelf.load("c", MODEL, CPU)
    assert holds(found, old.pages, read()) or holds(found, new, read("new"))
    shelf.save("c", new, read("new"), ABOUT)
    assert holds(shelf.load("c", MODEL, CPU), new, read("new"))


@pytest.mark.parametrize("n", range(len(STEPS)), ids=[f"{n}-{s}" for n, s in enumerate(STEPS)])
def test_a_save_interrupted_at_any_step_leaves_no_corpus_or_the_whole_one(
    shelf: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    new = random_pages()
    with monkeypatch.context() as broken:
        watching(broken, n, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            shelf.save("new", new, read("new"), ABOUT)
    names = sorted(p.name for p in folder.parent.iterdir())
    assert names == shelf.names()
    assert names in (["c", "other"], ["c", "new", "other"])
    if "new" in names:
        assert holds(shelf.load("new", MODEL, CPU), new, read("new"))


def test_a_disk_without_room_is_found_out_before_anything_is_written(
    corpus: Corpus, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected, usage = corpus.ask(QUESTION), shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        steps = watching(full, 0, None)
        with pytest.raises(StorageFullError, match="1,000 are free"):
            engine.ingest(OTHERS, name="other", progress=False)
        assert steps == []
    assert engine.store.names() == ["c"]
    assert same(engine.open("c").ask(QUESTION), expected)
    assert engine.ingest(OTHERS, name="other", progress=False).ask(QUESTION).text


def test_a_disk_without_room_is_found_out_before_the_model_has_read_everything(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passes: list[None] = []
    engine.attachment.model.base_model.register_forward_hook(lambda *_: passes.append(None))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFullError):
        engine.ingest(OTHERS, name="c", progress=False)
    assert passes == []


def test_a_store_that_is_no_folder_is_an_error_of_ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with Engine(model, tokenizer, store=tmp_path / "file") as engine, pytest.raises(ReAttentionError):
        engine.ingest(OTHERS, name="c", progress=False)


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
import torch
from reattention_core import store
from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.sources import ReadDocument

root, about = Path(sys.argv[1]), {"fingerprint": {}, "mode": "independent"}
pages = Pages.allocate([(2, 16, 16)] * 2, torch.tensor([0, 1]), torch.tensor([32, 1]), torch.float32, torch.device("cpu"))

def document(text):
    return [ReadDocument(Document(text=text), torch.tensor([(0, 3)], dtype=torch.int32), 32)]

def save(shelf, stop_at):
    steps = 0
    def watched(function):
        def call(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps - 1 == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    store.save_file, os.fsync, os.rename = map(watched, (store.save_file, os.fsync, os.rename))
    tempfile.mkdtemp, Path.write_text = watched(tempfile.mkdtemp), watched(Path.write_text)
    shelf.save("c", pages, document("new"), about)

for replace in (0, 1):
    for stop_at in range(int(sys.argv[2 + replace])):
        shelf = store.Store(root / f"{replace}-{stop_at}")
        if replace:
            shelf.save("c", pages, document("old"), about)
        child = os.fork()
        if not child:
            save(shelf, stop_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `<replace>-<step>`, each left by a process that was killed at that step of a save."""
    root = tmp_path_factory.mktemp("killed")
    arguments = [str(root), str(len(STEPS)), str(len(STEPS_TO_REPLACE))]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("replace", [0, 1], ids=["first", "replace"])
def test_a_process_killed_at_any_step_of_a_save_leaves_a_whole_corpus_or_none(killed: Path, replace: int) -> None:
    texts = []
    for step in range(len(STEPS_TO_REPLACE if replace else STEPS)):
        left = Store(killed / f"{replace}-{step}")
        try:
            texts.append(left.load("c", {}, CPU).documents[0].document.text)
        except CorpusNotFoundError:
            texts.append("none")
    order = ["old", "none", "new"] if replace else ["none", "new"]
    assert texts == sorted(texts, key=order.index)
    assert {texts[0], texts[-1]} == {order[0], "new"}


@pytest.mark.parametrize("replace", [0, 1], ids=["first", "replace"])
def test_what_a_killed_process_left_is_not_listed_as_a_corpus(killed: Path, replace: int) -> None:
    listed = [
        Store(killed / f"{replace}-{step}").names() for step in range(len(STEPS_TO_REPLACE if replace else STEPS))
    ]
    assert all(names in ([], ["c"]) for names in listed), listed


@pytest.mark.parametrize("step", range(len(STEPS_TO_REPLACE)))
def test_a_save_after_a_killed_one_succeeds(killed: Path, tmp_path: Path, step: int) -> None:
    shutil.copytree(killed / f"1-{step}", tmp_path / "store")
    left, pages = Store(tmp_path / "store"), random_pages()
    left.save("c", pages, read("newer"), ABOUT)
    assert holds(left.load("c", MODEL, CPU), pages, read("newer"))


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
