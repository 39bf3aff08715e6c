"""What the page of an answer says, put into its template; knows no model."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from reattention_core import __version__
from reattention_core.cache.pages import PAGE
from reattention_core.evidence import Evidence
from reattention_core.sources import Source
from reattention_core.view.corpus_map import TITLE, cells, title
from reattention_core.view.excerpts import Piece, excerpt, shown

if TYPE_CHECKING:
    from reattention_core.answer import Answer

TEXT = 20_000
"""Characters of a question or an answer that are shown."""

PASSAGES = 20
"""Passages that are shown at most; rules of one's own may read any number."""

DOCUMENTS = 12
"""Documents in the table at most: those with the most evidence."""


@dataclass(frozen=True)
class Reading:
    """A document of which passages were read.

    Attributes:
        title: what it is called.
        origin: path or URL, or empty.
        passages: its passages with their numbers, best first.
        before: characters left out before the first piece.
        pieces: the text.
    """

    title: str
    origin: str
    passages: list[tuple[int, Source]]
    before: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Row:
    """A document in the table: what it is called, its tokens, its share of the evidence, numbers of passages read."""

    title: str
    tokens: int
    share: float
    passages: list[int]


def render(answer: "Answer", evidence: Evidence) -> str:
    """The page of an answer, bounded whatever the documents hold."""
    sources = list(enumerate(answer.sources[:PASSAGES], 1))
    ids = {read.document.id: number for number, read in enumerate(evidence.documents)}
    owner = {number: ids[source.document_id] for number, source in sources}
    usage = answer.usage
    first = max(usage.first_token_seconds, usage.recall_seconds)
    return _template().render(
        version=__version__,
        question=shown(evidence.question, TEXT),
        answer=shown(answer.text, TEXT),
        cut=answer.finish_reason == "length",
        usage=usage,
        phases=[
            ("finding what to read", usage.recall_seconds),
            ("reading it, to the first word", first - usage.recall_seconds),
            ("writing", max(usage.seconds - first, 0.0)),
        ],
        evidence=evidence,
        n_tokens=sum(document.n_tokens for document in evidence.documents),
        unseen=max(len(answer.sources) - PASSAGES, 0),
        readings=_readings(evidence, sources, owner),
        cells=cells(evidence, _passage_of(evidence, sources, owner)),
        rows=_rows(evidence, owner),
    )


def _readings(evidence: Evidence, sources: list[tuple[int, Source]], owner: dict[int, int]) -> list[Reading]:
    """Documents in the order of their best passage."""
    readings = []
    for document in dict.fromkeys(owner.values()):
        own = [(number, source) for number, source in sources if owner[number] == document]
        read = evidence.documents[document].document
        origin = shown(read.source, TITLE) if read.source and read.title else ""
        readings.append(Reading(title(evidence, document), origin, own, *excerpt(read.text, own)))
    return readings


def _passage_of(evidence: Evidence, sources: list[tuple[int, Source]], owner: dict[int, int]) -> dict[int, int]:
    """The pages that were read, with the number of the passage each belongs to: the one that shares its characters."""
    found = {}
    for page in evidence.read:
        document = evidence.document_of(page)
        if document is None:
            continue
        read = evidence.documents[document]
        spans = read.spans[page * PAGE - read.start :][:PAGE]
        spans = spans[spans[:, 0] >= 0]
        for number, source in sources:
            if owner[number] == document and bool(((spans[:, 0] < source.end) & (spans[:, 1] > source.start)).any()):
                found[page] = number
                break
    return found


def _rows(evidence: Evidence, owner: dict[int, int]) -> list[Row]:
    """The documents with the most evidence, and all that were read."""
    shares = evidence.by_document
    best = sorted(range(len(shares)), key=lambda number: (number not in owner.values(), -shares[number]))[:DOCUMENTS]
    return [
        Row(
            title(evidence, number),
            evidence.documents[number].n_tokens,
            shares[number],
            [passage for passage, document in owner.items() if document == number],
        )
        for number in sorted(best, key=lambda number: -shares[number])
    ]


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")
