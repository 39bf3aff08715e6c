"""Corpora on disk: what is opened answers as what was saved, and no fault of disk, file or process gives half a corpus."""

import ast
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Answer, Config, Corpus, Document, Engine, store
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
from reattention_core.store import Store

DOCUMENTS = [
    Document(text="The warranty of the device lasts two years. " * 6, title="Warranty", source="a/warranty.txt"),
    Document(text="The manufacturer is in Zürich 😀. " * 5, id="maker", metadata={"page": 3, "tags": ["x", None]}),
]
OTHERS = ["A cache keeps the keys and the values of every token the model has read. " * 4]
QUESTION = "What is the warranty period?"
FILES = ["documents.json", "layer_000.safetensors", "layer_001.safetensors", "tokens.safetensors"]


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest(DOCUMENTS, name="c", progress=False)


@pytest.fixture
def other(engine: Engine) -> Iterator[None]:
    """A second corpus, which must answer as before when the test is over."""
    expected = engine.ingest(OTHERS, name="other", progress=False).ask(QUESTION)
    yield
    assert same(engine.open("other").ask(QUESTION), expected)
    with pytest.raises(CorpusNotFoundError):
        engine.open("nothing-of-that-name")


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Path:
    return tmp_path / "store" / "c"


def same(one: Answer, two: Answer) -> bool:
    return (one.text, one.sources, one.finish_reason) == (two.text, two.sources, two.finish_reason)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Change a file's contents and not its size."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("mode", ["independent", "joint"])
@pytest.mark.parametrize("strategy", ["consensus", "reattention", "longheads"])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_an_opened_corpus_answers_as_the_one_that_was_just_read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, mode: Any, strategy: Any, dtype: Any
) -> None:
    with Engine(model, tokenizer, Config(cache_dtype=dtype, strategy=strategy, stop=()), tmp_path) as engine:
        made = engine.ingest(DOCUMENTS, name="c", mode=mode, progress=False)
        opened = engine.open("c")
        assert same(opened.ask(QUESTION), made.ask(QUESTION))
        assert made.ask(QUESTION).sources
        assert [d.document for d in opened.documents] == DOCUMENTS
        assert [(d.start, list(d.spans)) for d in opened.documents] == [(d.start, d.spans) for d in made.documents]
        assert (opened.mode, opened.name, opened.n_tokens, opened.nbytes) == (mode, "c", made.n_tokens, made.nbytes)


def test_a_corpus_can_be_opened_by_another_engine_on_an_equal_model(
    corpus: Corpus, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    expected = corpus.ask(QUESTION)
    engine.close()
    equal = LlamaForCausalLM(model.config).eval()
    equal.load_state_dict(model.state_dict())
    shutil.copytree(tmp_path / "store", tmp_path / "elsewhere")
    with Engine(equal, tokenizer, engine.config, tmp_path / "elsewhere") as again:
        assert same(again.open("c").ask(QUESTION), expected)


def test_opening_reads_no_keys_from_disk(folder: Path, engine: Engine) -> None:
    """What is written to the file after opening is what is read: pages are mapped."""
    opened = engine.open("c")
    layer = folder / "layer_001.safetensors"
    with layer.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")
    last = max((opened.pages.keys[1], opened.pages.values[1]), key=torch.Tensor.data_ptr)
    assert last.flatten()[-1] == 1.0


def test_asking_writes_nothing(folder: Path, engine: Engine) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    engine.open("c").ask(QUESTION)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(before) == sorted([*FILES, "manifest.json"])


def test_what_is_saved_can_be_read_by_its_owner_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(folder.parent.stat().st_mode) & 0o077 == 0


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
    from tests.core.tiny_tokenizers import byte_level_bpe

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


def test_attaching_does_not_change_the_identity(model: PreTrainedModel, engine: Engine) -> None:
    attached = engine.identity
    again = Engine(LlamaForCausalLM(model.config), engine.tokenizer, engine.config)
    assert set(again.identity) == set(attached)
    again.close()
    engine.close()
    engine._identity = None
    assert engine.identity == attached


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer"])
def test_a_file_of_another_length_is_a_partial_corpus(
    folder: Path, other: None, engine: Engine, file: str, damage: str
) -> None:
    path = folder / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": data[:-1], "longer": data + b"\0"}[damage])
    with pytest.raises(PartialCacheError, match=rf"'c'.*{file}"):
        engine.open("c")


def test_a_corpus_that_is_open_survives_a_fault_of_another(folder: Path, other: None, engine: Engine) -> None:
    opened = engine.open("other")
    expected = opened.ask(QUESTION)
    (folder / "tokens.safetensors").write_bytes(b"")
    with pytest.raises(PartialCacheError):
        engine.open("c")
    assert same(opened.ask(QUESTION), expected)


def test_a_corpus_without_a_manifest_is_not_found(folder: Path, other: None, engine: Engine) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(CorpusNotFoundError, match="there are: other"):
        engine.open("c")


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
def test_a_manifest_that_is_none_of_ours_is_corrupt(folder: Path, other: None, engine: Engine, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(CorruptCacheError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("version", [2, 10**6])
def test_a_newer_version_is_refused_and_not_guessed_at(folder: Path, other: None, engine: Engine, version: int) -> None:
    edit_manifest(folder, version=version, fingerprint="of a form that we do not know")
    with pytest.raises(CacheVersionError, match=rf"{version}.* 1"):
        engine.open("c")


@pytest.mark.parametrize("value", [None, 5, "text", [], [1, 2], {"a": 1}, -1, 10**12], ids=repr)
@pytest.mark.parametrize("key", ["fingerprint", "bytes", "layers", "summary_size", "documents", "mode"])
def test_a_manifest_entry_of_the_wrong_type_is_an_error_of_ours(
    folder: Path, other: None, engine: Engine, key: str, value: Any
) -> None:
    edit_manifest(folder, **{key: value})
    with pytest.raises(CorpusError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("key", ["fingerprint", "bytes", "layers", "summary_size", "documents", "mode"])
def test_a_manifest_without_an_entry_is_an_error_of_ours(folder: Path, other: None, engine: Engine, key: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("key", ["start", "n_tokens"])
@pytest.mark.parametrize("value", [-1, 0, 10**6, 2**70, "1", None, 33], ids=repr)
def test_a_manifest_that_lies_about_where_documents_are_is_corrupt(
    folder: Path, other: None, engine: Engine, key: str, value: Any
) -> None:
    documents = json.loads((folder / "manifest.json").read_text())["documents"]
    documents[1][key] = value
    edit_manifest(folder, documents=documents)
    with pytest.raises(CorruptCacheError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("file", ["layer_001.safetensors", "tokens.safetensors"])
@pytest.mark.parametrize("at", [0, 8, 20, 60])
def test_garbage_in_the_header_of_a_file_is_corrupt(
    folder: Path, other: None, engine: Engine, file: str, at: int
) -> None:
    path = folder / file
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    with pytest.raises(CorruptCacheError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("layer_001.safetensors", b'"keys"', b'"kiss"'),
        ("layer_001.safetensors", b'"F32"', b'"I32"'),
        ("layer_001.safetensors", b"[2,6,32,16]", b"[6,2,32,16]"),
        ("layer_001.safetensors", b"[2,6,32,16]", b"[2,6,16,32]"),
        ("tokens.safetensors", b'"I64"', b'"F64"'),
        ("tokens.safetensors", b'"I32"', b'"F32"'),
        ("documents.json", b'"text"', b'"tent"'),
        ("documents.json", b'"text"', b'{text"'),
        ("documents.json", b"[{", b"{{"),
    ],
)
def test_an_edit_of_equal_size_is_corrupt(
    folder: Path, other: None, engine: Engine, file: str, old: bytes, new: bytes
) -> None:
    replace_bytes(folder / file, old, new)
    with pytest.raises(CorruptCacheError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize("tensor", ["filled", "first", "spans"])
def test_a_page_table_that_points_outside_the_pages_is_corrupt(
    folder: Path, other: None, engine: Engine, tensor: str
) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "tokens.safetensors"
    tensors = load_file(path)
    tensors[tensor][-1] = 10**6
    size = path.stat().st_size
    save_file(tensors, path)
    assert path.stat().st_size == size
    with pytest.raises(CorruptCacheError, match="'c'"):
        engine.open("c")


@pytest.mark.parametrize(
    "name",
    ["../x", "/abs", "", ".", "..", "a/b", "a\\b", "x" * 300, "Upper", "nul\0", "é", "a b", "-a", ".stage-x", "c\n"]
    + [None, 5, b"c", Path("c"), ["c"]],  # type: ignore[list-item]
    ids=repr,
)
def test_what_is_no_name_is_refused_and_nothing_is_touched(engine: Engine, tmp_path: Path, name: Any) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text("{}")
    calls: list[Callable[[], Any]] = [
        lambda: engine.open(name),
        lambda: engine.store.remove(name),
        lambda: engine.store.manifest(name),
        lambda: engine.store.check_free(name, True),
    ]
    if name is not None:
        calls.append(lambda: engine.ingest(OTHERS, name=name, progress=False))
    for call in calls:
        with pytest.raises(InvalidRequestError, match="corpus name"):
            call()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["x", "x/manifest.json"]


@pytest.mark.parametrize("name", ["a", "0", "x" * 64, "a.b", "a-b_c.9", "con"])
def test_names_that_are_allowed(engine: Engine, name: str) -> None:
    engine.ingest(OTHERS, name=name, progress=False)
    assert engine.store.names() == [name]
    assert engine.open(name).name == name


def test_an_unknown_corpus_is_an_error_that_names_the_known_ones(engine: Engine, corpus: Corpus, other: None) -> None:
    with pytest.raises(CorpusNotFoundError, match=r"'d'.*there are: c, other"):
        engine.open("d")
    with pytest.raises(CorpusNotFoundError, match="there are: c, other"):
        engine.store.remove("d")


def test_where_nothing_was_saved_no_corpus_is_found(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFoundError, match="there are: none"):
        engine.open("c")
    assert engine.store.names() == []
    assert not (tmp_path / "store").exists()


def test_a_removed_corpus_is_gone_and_its_name_is_free(
    engine: Engine, corpus: Corpus, folder: Path, other: None
) -> None:
    opened, expected = engine.open("c"), corpus.ask(QUESTION)
    engine.store.remove("c")
    assert engine.store.names() == ["other"]
    assert not folder.exists()
    assert same(opened.ask(QUESTION), expected)
    engine.ingest(DOCUMENTS, name="c", progress=False)
    assert same(engine.open("c").ask(QUESTION), expected)


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int, error: BaseException | None) -> list[str]:
    """Every step of a save that touches the disk, by name; the one numbered `stop_at` raises instead."""
    steps: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if error is not None and len(steps) - 1 == stop_at:
                raise error
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(store, "save_file", watched("save_file", store.save_file))
    monkeypatch.setattr(os, "fsync", watched("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", watched("rename", os.rename))
    monkeypatch.setattr(tempfile, "mkdtemp", watched("mkdtemp", tempfile.mkdtemp))
    monkeypatch.setattr(Path, "write_text", watched("write_text", Path.write_text))
    return steps


NEW = [Document(text="Nobody knows how long the warranty lasts. " * 3)]
# A stage folder, three files of tensors, two of JSON and a sync of each, one of the folder; rename, sync of the root.
STEPS = [
    *["mkdtemp", "save_file", "save_file", "save_file", "write_text"],
    *["fsync", "fsync", "fsync", "fsync", "write_text", "fsync", "fsync", "rename", "fsync"],
]
STEPS_TO_REPLACE = [*STEPS[:-2], "mkdtemp", "rename", "rename", "fsync"]


def test_the_steps_of_a_save(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lists above are what the tests below break one by one."""
    steps = counting(monkeypatch, 0, None)
    engine.ingest(NEW, name="c", progress=False)
    assert steps == STEPS
    steps.clear()
    engine.ingest(NEW, name="c", replace=True, progress=False)
    assert steps == STEPS_TO_REPLACE


def faults() -> list[tuple[int, BaseException]]:
    full = OSError(errno.ENOSPC, "No space left on device")
    return [
        (n, SafetensorError("I/O error: No space left on device (os error 28)") if step == "save_file" else full)
        for n, step in enumerate(STEPS_TO_REPLACE)
    ]


@pytest.mark.parametrize(("n", "error"), faults(), ids=lambda x: x if isinstance(x, int) else "")
def test_a_disk_that_fills_up_at_any_step_leaves_the_old_corpus_or_the_new_one(
    engine: Engine, other: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n: int, error: BaseException
) -> None:
    old = engine.ingest(DOCUMENTS, name="c", progress=False).ask(QUESTION)
    new = engine.ingest(NEW, progress=False).ask(QUESTION)
    with monkeypatch.context() as broken:
        counting(broken, n, error)
        with pytest.raises(StorageFullError, match=r"'c'.*No space left") as caught:
            engine.ingest(NEW, name="c", replace=True, progress=False)
    assert caught.value.__cause__ is error
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["c", "other"]
    found = engine.open("c").ask(QUESTION)
    assert same(found, old) or same(found, new)
    assert same(engine.ingest(NEW, name="c", replace=True, progress=False).ask(QUESTION), new)


@pytest.mark.parametrize("n", range(len(STEPS)))
def test_an_interrupted_first_save_leaves_no_corpus_or_the_whole_one(
    engine: Engine, other: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n: int
) -> None:
    with monkeypatch.context() as broken:
        counting(broken, n, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            engine.ingest(NEW, name="c", progress=False)
    names = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert names == engine.store.names()
    assert names in (["other"], ["c", "other"])
    if "c" in names:
        assert engine.open("c").ask(QUESTION).text


def test_a_disk_without_room_is_found_out_before_anything_is_written(
    engine: Engine, other: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        steps = counting(full, 0, None)
        with pytest.raises(StorageFullError, match=r"1,000 are free"):
            engine.ingest(DOCUMENTS, name="c", progress=False)
        assert steps == []
    assert engine.store.names() == ["other"]
    assert engine.ingest(DOCUMENTS, name="c", progress=False).ask(QUESTION).text


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
pages = Pages.allocate([(2, 16, 16)] * 2, torch.tensor([0, 1]), torch.float32, torch.device("cpu"))
new = [ReadDocument(Document(text="new"), [(0, 3)], 32)]

def save(to, stop_at, replace):
    steps = 0
    def watched(function):
        def call(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps - 1 == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    kept = store.Store(to)
    if replace:
        kept.save("c", pages, [ReadDocument(Document(text="old"), [(0, 3)], 32)], about)
    store.save_file, os.fsync, os.rename = map(watched, (store.save_file, os.fsync, os.rename))
    tempfile.mkdtemp, Path.write_text = watched(tempfile.mkdtemp), watched(Path.write_text)
    kept.save("c", pages, new, about)

torch.set_num_threads(1)
for replace in (0, 1):
    for stop_at in range(int(sys.argv[2 + replace])):
        child = os.fork()
        if not child:
            save(root / f"{replace}-{stop_at}", stop_at, replace)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `<replace>-<step>`, each left by a process that was killed at that step of a save."""
    root = tmp_path_factory.mktemp("killed")
    arguments = [root, str(len(STEPS)), str(len(STEPS_TO_REPLACE))]
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
            texts.append(left.load("c", {}, torch.device("cpu")).documents[0].document.text)
        except CorpusNotFoundError:
            texts.append("none")
    before = "old" if replace else "none"
    assert texts == sorted(texts, key=[before, "none", "new"].index)
    assert texts[0] == before
    assert texts[-1] == "new"


@pytest.mark.parametrize("replace", [0, 1], ids=["first", "replace"])
def test_what_a_killed_process_left_is_not_listed_as_a_corpus(killed: Path, replace: int) -> None:
    for step in range(len(STEPS_TO_REPLACE if replace else STEPS)):
        left = Store(killed / f"{replace}-{step}")
        assert left.names() in ([], ["c"])


def test_a_save_after_a_killed_one_succeeds(killed: Path, tmp_path: Path, engine: Engine, corpus: Corpus) -> None:
    for step in (5, len(STEPS_TO_REPLACE) - 2):
        shutil.copytree(killed / f"1-{step}", tmp_path / "store", dirs_exist_ok=True)
        made = engine.ingest(DOCUMENTS, name="c", replace=True, progress=False)
        assert same(engine.open("c").ask(QUESTION), made.ask(QUESTION))


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
