"""Passages in the text around them, cut to what a page can hold; knows no HTML.

Whatever a document holds, an excerpt is bounded, and no character in it can turn the text around it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reattention_core.sources import Source

AROUND = 600
"""Characters of a document that are shown before and after a passage."""

LONGEST = 6000
"""Characters of a passage that are shown: its beginning and its end."""

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text: str, most: int) -> str:
    """A text for people: at most `most` characters, controls and what overrides the direction of writing replaced."""
    cut = text if len(text) <= most else text[:most] + " …"
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", cut)


@dataclass(frozen=True)
class Piece:
    """A part of an excerpt.

    Attributes:
        text: of the document.
        passage: number of the source that it is, or None for the text around it.
        left_out: characters of the document between this piece and the next.
    """

    text: str
    passage: int | None = None
    left_out: int = 0


def excerpt(text: str, sources: Sequence[tuple[int, Source]]) -> tuple[int, list[Piece]]:
    """The passages of one document, in its order, with the text around them.

    Args:
        text: the document's.
        sources: passages of it with their numbers, which do not overlap.

    Returns:
        How many characters are left out before the first piece, and the pieces.
    """
    ordered = sorted(sources, key=lambda one: one[1].start)
    first = max(ordered[0][1].start - AROUND, 0)
    pieces, at = list[Piece](), first
    for place, (number, source) in enumerate(ordered):
        if source.start > at:
            pieces.append(Piece(shown(text[at : source.start], source.start - at)))
        pieces += _passage(text[source.start : source.end], number)
        following = ordered[place + 1][1].start if place + 1 < len(ordered) else len(text)
        last = place + 1 == len(ordered)
        at = min(source.end + AROUND, following)
        if at > source.end:
            again = at if last else max(following - AROUND, at)
            pieces.append(Piece(shown(text[source.end : at], AROUND), left_out=(len(text) if last else again) - at))
            at = again
    return first, pieces


def _passage(text: str, number: int) -> list[Piece]:
    """A passage, its middle left out where it is too long."""
    if len(text) <= LONGEST:
        return [Piece(shown(text, LONGEST), number)]
    half = LONGEST // 2
    begin, end = text[:half], text[-half:]
    return [Piece(shown(begin, half), number, len(text) - 2 * half), Piece(shown(end, half), number)]
