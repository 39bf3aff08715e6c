"""Works out what an edit of a corpus changes, document by document; knows no tokens, pages or models.

A document is what the model reads of it, its title and text: while these stay the same its pages stay, whatever becomes of
its id, source or metadata. An edit is a plan first, the documents as they will stand, each with the number of the old one
whose pages it keeps, so that what must be read is known before anything is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reattention_core.documents import Document, content_id
from reattention_core.errors import InvalidRequestError, UnreadableDocumentError


@dataclass(frozen=True)
class Changes:
    """What an edit did, as ids of documents.

    Attributes:
        added: new ones, read now.
        reread: known ones whose text or title changed, read again.
        removed: taken out.
        unchanged: of those handed over, the ones whose pages stayed; source and metadata are taken over.
        skipped: files that could not be read.
    """

    added: tuple[str, ...] = ()
    reread: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    skipped: tuple[UnreadableDocumentError, ...] = ()


class Planned(NamedTuple):
    """A document as it will stand, and the old one whose pages it keeps (None: it must be read)."""

    document: Document
    kept: int | None


@dataclass(frozen=True)
class Plan:
    """All documents as they will stand, in order, and what that changes."""

    documents: list[Planned]
    changes: Changes


def adding(old: Sequence[Document], new: Sequence[Document]) -> Plan:
    """New documents behind the old ones.

    Raises:
        InvalidRequestError: one has the id of another document.
    """
    plan = refreshing(old, new, drop=False, by_source=False)
    if plan.changes.reread:
        raise InvalidRequestError(
            f"the corpus has another document of the id {plan.changes.reread[0]!r}: call refresh to replace it, or give the "
            "new one an id of its own"
        )
    return plan


def refreshing(old: Sequence[Document], new: Sequence[Document], *, drop: bool = False, by_source: bool = True) -> Plan:
    """Documents replaced by newer ones in their places, and unknown ones behind them.

    A newer document replaces the one of its id; or, as files have ids made from their content, the only one of its source.

    Args:
        old: the documents as they stand.
        new: as they should stand.
        drop: whether those that are not among the new ones go.
        by_source: whether a source may tell which document is replaced.
    """
    planned = [Planned(document, number) for number, document in enumerate(old)]
    places = {document.id: number for number, document in enumerate(old)}
    sources = _sources(old, new) if by_source else {}
    added, reread, unchanged, met = list[str](), list[str](), list[str](), set[int]()
    for document in new:
        number = places.get(document.id, sources.get(document.id))
        if number is None:
            planned.append(Planned(document, None))
            added.append(document.id)
            continue
        met.add(number)
        same = (document.title, document.text) == (old[number].title, old[number].text)
        planned[number] = Planned(document, number if same else None)
        (unchanged if same else reread).append(document.id)
    gone = {number: old[number].id for number in range(len(old)) if drop and number not in met}
    changes = Changes(tuple(added), tuple(reread), tuple(gone.values()), tuple(unchanged))
    return Plan([p for n, p in enumerate(planned) if n not in gone], changes)


def removing(old: Sequence[Document], ids: Sequence[str]) -> Plan:
    """Without the documents of some ids.

    Raises:
        InvalidRequestError: there is none of an id.
    """
    places = _places(old, ids)
    kept = [Planned(document, number) for number, document in enumerate(old) if number not in places]
    return Plan(kept, Changes(removed=tuple(old[number].id for number in sorted(places))))


def reordering(old: Sequence[Document], ids: Sequence[str]) -> Plan:
    """The same documents in the order of `ids`, those not named behind them.

    Raises:
        InvalidRequestError: there is no document of an id, or one is named twice.
    """
    if len(set(ids)) != len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise InvalidRequestError(f"document {twice!r} is named more than once: name each document once")
    first = _places(old, ids)
    order = list(first) + [number for number in range(len(old)) if number not in first]
    return Plan([Planned(old[number], number) for number in order], Changes())


def _places(old: Sequence[Document], ids: Sequence[str]) -> dict[int, None]:
    """Numbers of the documents of some ids, in the order of the ids."""
    known = {document.id: number for number, document in enumerate(old)}
    for name in ids:
        if name not in known:
            shown = ", ".join(list(known)[:5]) or "none"
            more = f" and {len(known) - 5:,} more" if len(known) > 5 else ""
            raise InvalidRequestError(f"there is no document {name!r} in the corpus (there are: {shown}{more})")
    return {known[name]: None for name in ids}


def _sources(old: Sequence[Document], new: Sequence[Document]) -> dict[str, int]:
    """For new documents whose ids come from their content: the old one of their source, where just one of each has it."""
    of_old = Counter(document.source for document in old)
    of_new = Counter(document.source for document in new)
    ids = {document.id for document in new}
    places = {
        document.source: number
        for number, document in enumerate(old)
        if document.source and of_old[document.source] == 1 and _from_content(document) and document.id not in ids
    }
    return {
        document.id: places[document.source]
        for document in new
        if document.source in places and of_new[document.source] == 1 and _from_content(document)
    }


def _from_content(document: Document) -> bool:
    return document.id == content_id({"title": document.title, "text": document.text})
