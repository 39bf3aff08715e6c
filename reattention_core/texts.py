"""Long texts out of prompts, read once and kept for the next prompt that holds them; knows no questions.

A text is cut into pieces of about 1,000 tokens, from its beginning on, each read by itself behind the sink as the documents of
a corpus are. A text that has pieces in common with one that is kept is read only where it differs.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reattention_core.cache.kept import Kept
from reattention_core.documents import Document
from reattention_core.edition import Edition, assembled
from reattention_core.errors import CancelledError
from reattention_core.memory import within_memory
from reattention_core.prefill import Cancelled
from reattention_core.reading import How, read_documents
from reattention_core.turns import POLL

if TYPE_CHECKING:
    from reattention_core.engine import Engine

PIECE = 4000
"""Characters of a piece at most, about 1,000 tokens."""


class _Text:
    """A text that was read."""

    def __init__(self, texts: "dict[bytes, _Text]", digest: bytes, edition: Edition) -> None:
        self._texts, self._digest, self.edition = texts, digest, edition
        self.nbytes, self.readers = edition.pages.nbytes, 0

    @property
    def held(self) -> bool:
        return self.readers > 0

    def forget(self) -> None:
        del self._texts[self._digest]


class Texts:
    """Texts that were read. Threads may share it.

    Args:
        kept: budget of bytes; its lock is ours.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept, self._reading = kept, threading.Lock()
        self._texts: dict[bytes, _Text] = {}

    @contextmanager
    def read(self, engine: "Engine", text: str, cancelled: Cancelled) -> Iterator[tuple[Edition, int]]:
        """A text as documents whose ids are where they begin, and how many of their tokens had to be read now.

        While inside, it is not dropped.

        Raises:
            CapacityError: it does not fit the memory.
            CancelledError: `cancelled` said so; nothing of it is kept.
        """
        entry, fresh = self._hold(text), 0
        if entry is None:
            while not self._reading.acquire(timeout=POLL):
                if cancelled():
                    raise CancelledError("cancelled while another text was being read")
            try:
                entry = self._hold(text)  # another thread may have read it meanwhile
                if entry is None:
                    edition, fresh = self._read(engine, text, cancelled)
                    entry = self._keep(text, edition)
            finally:
                self._reading.release()
        try:
            yield entry.edition, fresh
        finally:
            with self._kept.lock:
                entry.readers -= 1

    def _hold(self, text: str) -> _Text | None:
        with self._kept.lock:
            entry = self._texts.get(_digest(text))
            if entry is not None:
                self._kept.use(entry)
                entry.readers += 1
            return entry

    def _read(self, engine: "Engine", text: str, cancelled: Cancelled) -> tuple[Edition, int]:
        with self._kept.lock:
            known = {d.document.text: (d, e.edition.pages) for e in self._texts.values() for d in e.edition.documents}
        pieces = [Document(text=text[start:stop], id=str(start)) for start, stop in cut(text)]
        new = [*{piece.text: piece for piece in pieces if piece.text not in known}.values()]
        fresh = 0
        if new:
            how = How("independent", engine.selector("consensus"), False, cancelled)
            pages, read = read_documents(engine, new, how)
            known |= {document.document.text: (document, pages) for document in read}
            fresh = sum(document.n_tokens for document in read)
        with within_memory():
            sink = next(iter(known.values()))[1]
            pages, documents = assembled(sink, [(piece, *known[piece.text]) for piece in pieces])
        # Each text is asked one thing, so that no pass over it is recorded.
        return Edition(engine.attachment, pages, documents, False, lambda: engine.trusted), fresh

    def _keep(self, text: str, edition: Edition) -> _Text:
        with self._kept.lock:
            digest = _digest(text)
            entry = _Text(self._texts, digest, edition)
            entry.readers += 1
            if self._kept.make_room(entry.nbytes):
                self._texts[digest] = entry
                self._kept.add(entry)
            return entry


def cut(text: str) -> list[tuple[int, int]]:
    """Where the pieces of a text begin and end, those of nothing but white space left out.

    A piece ends with a paragraph, a line, a sentence or a word, whichever comes first in this order and last in the piece's
    second half; so a text that begins like another is cut alike as far as they agree.
    """
    found, start = [], 0
    while start < len(text):
        stop = start + PIECE
        if stop < len(text):
            ends = (text.rfind(mark, start + PIECE // 2, stop) + len(mark) for mark in ("\n\n", "\n", ". ", " "))
            stop = next((end for end in ends if end > start + PIECE // 2), stop)
        if text[start:stop].strip():
            found.append((start, min(stop, len(text))))
        start = stop
    return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
