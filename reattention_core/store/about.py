"""What a document's pages depend on, and the names that follow from it; knows no files and no tensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from reattention_core.documents import Document
from reattention_core.store import disk


@dataclass(frozen=True)
class About:
    """How the documents of a corpus are read.

    Attributes:
        model: as it was asked for.
        mode: "independent" or "joint".
        fingerprint: what the pages depend on, field by field.
        rule: that sums up chunks of documents, or "".
        way: all else that a document's pages depend on.
    """

    model: str
    mode: str
    fingerprint: dict[str, str]
    rule: str = ""
    way: str = ""

    @property
    def identity(self) -> str:
        """Of the model and its settings, in short."""
        return _digest(disk.to_json(self.fingerprint))

    def keys(self, documents: Sequence[Document]) -> list[str]:
        """What names each document's segment: equal keys, equal pages."""
        keys: list[str] = []
        for document in documents:
            earlier = keys[-1] if keys and self.mode == "joint" else ""
            of = [self.identity, self.mode, self.rule, self.way, earlier, document.title, document.text]
            keys.append(_digest(disk.to_json(of)))
        return keys


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
