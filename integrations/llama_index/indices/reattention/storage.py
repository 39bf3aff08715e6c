"""How an index is kept: its name in the framework's index store, its pages in the engine's; knows no model.

`storage_context.persist()` writes the framework's own stores. The index has a place among them, a store that holds nothing
and publishes the corpus when it is told to persist. Importing this file tells the framework's registries of the index, so
that `load_index_from_storage` can load it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

from reattention_core import Document, Engine
from reattention_core.corpus import Corpus
from reattention_core.frameworks.shared import shared_corpus
from reattention_core.prefill import Cancelled

if TYPE_CHECKING:
    from llama_index.core.data_structs.struct_type import IndexStructType
    from llama_index.core.indices.base import BaseIndex

TYPE = "reattention"


@dataclass
class CorpusStruct(IndexStruct):
    """What the framework keeps of an index.

    Attributes:
        corpus: name under which the corpus is, or will be, saved.
        model: that read it.
        n_documents: how many it had when this was written.
    """

    corpus: str = ""
    model: str = ""
    n_documents: int = 0

    @classmethod
    def get_type(cls) -> "IndexStructType":
        """The key of both registries."""
        return TYPE  # type: ignore[return-value]  # the framework's enumeration cannot be added to; only the text is used


class Kept:
    """The corpus of an index, and where it is or will be saved.

    The store that publishes it holds this instead of the index, so that an index and its memory are freed when nobody uses it.

    Args:
        engine: gives the engine, loaded if it was not yet.
        name: under which it is saved.
        at_once: save it as soon as it is read, instead of when the framework persists its stores.
        replace: overwrite a saved corpus of that name.

    Attributes:
        corpus: None while no document was read.
        editing: held by who edits, because the first edit makes the corpus, and publishing puts another in its place.
    """

    def __init__(self, engine: Callable[[], Engine], name: str, at_once: bool, replace: bool) -> None:
        self.engine, self._name, self._at_once, self._replace = engine, name, at_once, replace
        self.corpus: Corpus | None = None
        self.editing = threading.RLock()

    def ingest(self, documents: Sequence[Document], progress: bool, cancelled: Cancelled) -> None:
        """Read the first documents."""
        name = self._name if self._at_once else None
        self.corpus = self.engine().ingest(
            documents, name=name, replace=self._replace, progress=progress, cancelled=cancelled
        )

    def open(self, n_documents: int) -> None:
        """Open the saved corpus; there may be none if it was kept without any documents and got none since.

        Raises:
            CorpusNotFoundError: there must be one.
        """
        if n_documents or self._name in self.engine().store.names():
            self.corpus = shared_corpus(self.engine(), self._name)

    def publish(self) -> None:
        """Save the corpus, if it is not saved yet; afterwards every edit is saved at once."""
        with self.editing:
            self._at_once = True
            if self.corpus is not None and self.corpus.name is None:
                self.corpus = self.engine().join(self.corpus, name=self._name, replace=True)

    def filled(self) -> Corpus | None:
        """The corpus, if there is something to ask."""
        return self.corpus if self.corpus is not None and self.corpus.documents else None


class Publisher(SimpleVectorStore):
    """Publishes a corpus when the framework persists its stores.

    Args:
        kept: the corpus.
    """

    _kept: Kept = PrivateAttr()

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    def persist(self, *args: Any, **kwargs: Any) -> None:
        """Publish the corpus, and write an empty store, which the framework reads again."""
        self._kept.publish()
        super().persist(*args, **kwargs)


def register(index: "type[BaseIndex[CorpusStruct]]") -> None:
    """Have `load_index_from_storage` know the index."""
    INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[CorpusStruct.get_type()] = CorpusStruct
    INDEX_STRUCT_TYPE_TO_INDEX_CLASS[CorpusStruct.get_type()] = index
