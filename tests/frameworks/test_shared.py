"""What both integrations stand on: the registry of engines and corpora, and the word on a missing framework."""

import gc
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from reattention_core import Engine
from reattention_core.errors import UnsupportedModelError
from reattention_core.frameworks import shared
from reattention_core.frameworks.shared import shared_corpus, shared_engine, shared_tokenizer


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were loaded; stand-ins take the place of engines."""
    names: list[str] = []
    both_loading = threading.Barrier(2, timeout=10)

    def load(model: str, **_: Any) -> SimpleNamespace:
        names.append(model)
        if model.startswith("beside"):
            both_loading.wait()
        if names == ["fails at first"]:
            raise UnsupportedModelError("no")
        return SimpleNamespace(closed=False)

    monkeypatch.setattr(Engine, "from_pretrained", load)
    monkeypatch.setattr(shared, "_slots", {})
    return names


@pytest.mark.shows("weights are loaded late and shared")
def test_one_engine_for_equal_settings(loads: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: shared_engine("one"), range(8)))
    assert loads == ["one"]
    assert all(engine is engines[0] for engine in engines)
    assert shared_engine("one", strategy="consensus") is engines[0], "it is the default"
    assert shared_engine("one", strategy="longheads") is not engines[0]
    assert shared_engine("one", dtype="bfloat16") is not engines[0]


def test_models_load_beside_each_other(loads: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(shared_engine, ["beside one", "beside two"]))
    assert sorted(loads) == ["beside one", "beside two"]


def test_a_closed_engine_is_replaced_and_a_failure_forgotten(loads: list[str]) -> None:
    with pytest.raises(UnsupportedModelError):
        shared_engine("fails at first")
    first = shared_engine("fails at first")
    first.closed = True
    assert shared_engine("fails at first") is not first


def test_a_corpus_is_open_once_as_long_as_somebody_holds_it(engine: Engine, notes: str) -> None:
    held = shared_corpus(engine, notes)
    assert shared_corpus(engine, notes) is held
    engine.ingest("A new note. " * 9, name=notes, replace=True, progress=False)
    assert shared_corpus(engine, notes) is held
    del held
    gc.collect()
    assert len(shared_corpus(engine, notes).documents) == 1


def test_a_tokenizer_that_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="could not be loaded"):
        shared_tokenizer(str(tmp_path))


@pytest.mark.shows("without the extra, the error names the pip command")
@pytest.mark.parametrize(
    ("package", "needs", "extra"),
    [
        ("llama_index.llms.reattention", "llama_index.core.base.llms.types", "llama-index"),
        ("llama_index.indices.reattention", "llama_index.core.indices.base", "llama-index"),
        ("langchain_reattention", "langchain_core.callbacks", "langchain"),
        ("langchain_reattention.middleware", "langchain.agents.middleware", "agents"),
    ],
)
def test_a_missing_framework_is_told(monkeypatch: pytest.MonkeyPatch, package: str, needs: str, extra: str) -> None:
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, needs, None)
    with pytest.raises(ImportError, match=rf"pip install 'reattention\[{extra}\]'"):
        importlib.import_module(package)
