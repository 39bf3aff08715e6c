"""One engine per model in the process, loaded when it is first needed; knows no framework."""

import threading
import weakref
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from reattention_core.config import Config
from reattention_core.corpus import Corpus
from reattention_core.engine import Engine
from reattention_core.home import home
from reattention_core.models.loading import BUNDLED, load_tokenizer
from reattention_core.store import Store


class _Slot:
    """The place of one engine; its lock is held while the weights load, so that others load beside it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Engine | None = None


_lock = threading.Lock()
_slots: dict[tuple[str | None, ...], _Slot] = {}
_opening = threading.Lock()
# Weak, because a corpus holds its engine: whoever uses a corpus keeps it open.
_corpora: weakref.WeakValueDictionary[tuple[int, str], Corpus] = weakref.WeakValueDictionary()


def shared_engine(
    model: str = BUNDLED, device: str | None = None, dtype: str = "auto", strategy: str | None = None
) -> Engine:
    """The process's engine of these settings: loaded by the first call that asks, again after it was closed.

    Args:
        model: as for `Engine.from_pretrained`.
        device: likewise.
        dtype: likewise.
        strategy: the selection rule; the default of `Config` when left out.

    Raises:
        UnsupportedModelError: the model cannot be loaded or attached.
        InvalidConfigError: no rule has that name.
    """
    strategy = strategy or Config().strategy
    with _lock:
        slot = _slots.setdefault((model, device, dtype, strategy), _Slot())
    with slot.lock:
        if slot.engine is None or slot.engine.closed:
            slot.engine = Engine.from_pretrained(model, device=device, dtype=dtype, strategy=strategy)
        return slot.engine


def loaded_engine(model: str, device: str | None, dtype: str, strategy: str | None) -> Engine | None:
    """The process's engine of these settings, if it is loaded already."""
    with _lock:
        slot = _slots.get((model, device, dtype, strategy or Config().strategy))
    return None if slot is None or slot.engine is None or slot.engine.closed else slot.engine


def shared_corpus(engine: Engine, name: str) -> Corpus:
    """A saved corpus, opened once for all who hold it. A corpus replaced on disk is seen once nobody holds the old one.

    Raises:
        CorpusNotFoundError: there is none of that name.
        CorpusError: it cannot be used with this engine.
    """
    with _opening:
        corpus = _corpora.get((id(engine), name))
        if corpus is None:
            corpus = _corpora[id(engine), name] = engine.open(name)
        return corpus


def corpus_digest(engine: Engine | None, name: str) -> str | None:
    """See `Store.digest`; of the given engine's store, or of the one that engines have by default, which are not loaded."""
    store = Store(home() / "corpora") if engine is None else engine.store
    return store.digest(name)


@lru_cache(maxsize=8)
def shared_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer without its weights, for those who only count tokens or ask for the chat template.

    Raises:
        UnsupportedModelError: it cannot be loaded.
    """
    return load_tokenizer(model)
