"""From the pages that an answer rests on back to the exact text of the documents; knows no model and no cache."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from reattention_core.cache.pages import PAGE, pages_for
from reattention_core.documents import Document

WORD = 24
"""Characters that a passage grows at each end to finish a word; some scripts put no space between words."""


class Source(BaseModel):
    """A passage that the model read for an answer. Evidence of use, not proof of correctness.

    Attributes:
        document_id: which document.
        title: its title.
        source: where it came from, a path or URL, if known.
        start: first character of the passage in the document's text.
        end: character after its last.
        score: the passage's share of all evidence in the corpus, 0 to 1.
        quote: exactly the document's text from start to end.
    """

    model_config = ConfigDict(frozen=True)

    document_id: str
    title: str
    source: str | None
    start: int
    end: int
    score: float
    quote: str


class Saved(NamedTuple):
    """Where a read document lies on disk: which of a pack's segments it is, and the segment's key."""

    pack: str
    number: int
    key: str


@dataclass(frozen=True, eq=False)
class ReadDocument:
    """A document in a corpus: its text, its tokens' places in it, and where its pages begin.

    Attributes:
        document: text, title and origin.
        spans: [n, 2] int32, characters of the text that each token covers; (-1, -1) for title and closing.
        start: address of its first token.
        saved: where it lies on disk, if it does.
    """

    document: Document
    spans: torch.Tensor
    start: int
    saved: Saved | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the document, title and closing included."""
        return len(self.spans)


def passages(documents: Sequence[ReadDocument], pages: Sequence[int], evidence: Sequence[float]) -> list[Source]:
    """Runs of neighbouring pages as passages, those with the most evidence first.

    Args:
        documents: of the corpus, by rising start.
        pages: page numbers, rising.
        evidence: of every page of the corpus.
    """
    total = sum(evidence) or 1.0
    starts = [document.start // PAGE for document in documents]
    found, run = list[Source](), list[int]()
    for page in [*pages, -1]:
        if run and (page != run[-1] + 1 or page in starts):
            owner = documents[bisect_right(starts, run[0]) - 1] if run[0] >= starts[0] else None
            if owner is not None:
                score = sum(evidence[p] for p in run) / total
                _add(found, owner, _passage(owner, run[0], run[-1] + 1, score))
            run = []
        run.append(page)
    return sorted(found, key=lambda s: -s.score)


def _add(found: list[Source], document: ReadDocument, new: Source | None) -> None:
    """Append a passage, or widen the last one: grown to whole words, two may meet in a long word."""
    if new is None:
        return
    if found and found[-1].document_id == new.document_id and new.start < found[-1].end:
        last = found.pop()
        start, end = min(last.start, new.start), max(last.end, new.end)
        quote = document.document.text[start:end]
        new = new.model_copy(update={"start": start, "end": end, "quote": quote, "score": last.score + new.score})
    found.append(new)


def _passage(document: ReadDocument, first: int, stop: int, score: float) -> Source | None:
    """The text under pages first..stop-1, grown to whole words; None where only white space, title or closing stands."""
    own = document.start // PAGE
    assert first - own < pages_for(document.n_tokens), "the page lies beyond its document"
    spans = document.spans[(first - own) * PAGE : (stop - own) * PAGE]
    spans = spans[spans[:, 0] >= 0]
    if not len(spans):
        return None
    text = document.document.text
    start, end = int(spans[:, 0].min()), int(spans[:, 1].max())
    for _ in range(WORD):
        start -= start > 0 and not text[start].isspace() and not text[start - 1].isspace()
        end += end < len(text) and not text[end - 1].isspace() and not text[end].isspace()
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end = start + len(text[start:end].rstrip())
    if start >= end:
        return None
    return Source(
        document_id=document.document.id,
        title=document.document.title,
        source=document.document.source,
        start=start,
        end=end,
        score=score,
        quote=text[start:end],
    )
