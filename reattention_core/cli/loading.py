"""Loads a model, or a corpus with its model, without the noise of the libraries below; knows no command."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reattention_core.cli.console import notes, printable, waiting

if TYPE_CHECKING:
    from reattention_core.corpus import Corpus
    from reattention_core.engine import Engine


class _Notes(logging.Handler):
    """Shows what the library logs as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        notes.print(f"{record.levelname.lower()}: {printable(record.getMessage())}", style="yellow")


_NOTES = _Notes(logging.WARNING)


@contextmanager
def loaded(store: Path, model: str | None, device: str | None, dtype: str) -> "Iterator[Engine]":
    """An engine, closed at the end.

    Args:
        store: folder of corpora.
        model: see `Engine.from_pretrained`; the bundled one when left out.
        device: where to put it.
        dtype: of its weights.
    """
    logging.getLogger("reattention_core").addHandler(_NOTES)
    with waiting("loading the model"):
        from transformers.utils import logging as transformers_logging

        from reattention_core.engine import Engine
        from reattention_core.models.loading import BUNDLED

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        engine = Engine.from_pretrained(model or BUNDLED, device=device, dtype=dtype, store=store)
    with engine:
        yield engine


@contextmanager
def opened(store: Path, name: str, model: str | None, device: str | None, dtype: str) -> "Iterator[Corpus]":
    """A saved corpus with its model: the one that read it, unless another is named; arguments as for `loaded`."""
    from reattention_core.store import Store

    manifest = Store(store).manifest(name)  # a wrong name is told before the seconds that loading a model takes
    with loaded(store, model or manifest.model or None, device, dtype) as engine:
        yield engine.open(name)
