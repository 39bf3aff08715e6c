"""Filler text cut into documents of whole sentences, and needles put between them; knows no task and no model.

Lengths are tokens of the model that is measured. A needle displaces as much of the end of its document, so that the
document keeps its number of tokens or has slightly fewer: a corpus of any length is read once, and for each draw only the
documents with needles anew, in the same place.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import cycle
from math import ceil
from pathlib import Path

from reattention_bench.words import key
from reattention_core.documents import Document
from reattention_core.errors import InvalidRequestError

NOISE = (
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
)
"""The filler of landmark attention's passkey (arXiv 2305.16300), RULER's `noise`."""

PER_DOCUMENT = 1000
"""Tokens of a document at most."""

KINDS = ("essays", "noise", "needles")

Count = Callable[[str], int]
"""Tokens of a text."""

_AFTER_SENTENCE = re.compile(r"(?<=[.!?])(?=\s)")


def sentences(kind: str, data: Path, start: int = 0) -> Iterator[str]:
    """Endless filler, sentence by sentence, each with the white space before it.

    Args:
        kind: `essays` (Paul Graham's, out of the data folder), `noise`, `needles` (RULER's third: every sentence is a
            distractor) or the path of any text.
        data: the folder that holds essays.txt.
        start: character of a text to begin at, rounded up to a sentence.

    Raises:
        InvalidRequestError: there is no such text.
    """
    if kind == "noise":
        return cycle(NOISE)
    if kind == "needles":
        return _distractors()
    path = data / "essays.txt" if kind == "essays" else Path(kind)
    if not path.is_file():
        advice = (
            "pass the folder that holds it with --data, or --haystack noise, which needs no file"
            if kind == "essays"
            else f"pass --haystack {', '.join(KINDS)} or the path of a long text"
        )
        raise InvalidRequestError(f"there is no text {str(path)!r} to hide needles in: {advice}")
    text = path.read_text(encoding="utf-8")
    pieces = [piece for piece in _AFTER_SENTENCE.split(text[start:] + "\n\n" + text[:start]) if piece.strip()]
    return cycle(pieces[1:] if start else pieces)


def _distractors() -> Iterator[str]:
    rng = random.Random(0)
    while True:
        yield f" One of the special magic numbers for {key(rng)} is: {rng.randint(1_000_000, 9_999_999)}."


def cut(filler: Iterator[str], length: int, count: Count) -> list[list[str]]:
    """Documents of whole sentences that have `length` tokens together, or less by one sentence at most.

    Args:
        filler: endless sentences.
        length: tokens of all documents, their closing blank lines included.
        count: tokens of a text.

    Raises:
        InvalidRequestError: not even the first sentence fits.
    """
    cost = lru_cache(100_000)(count)
    share = length / ceil(length / PER_DOCUMENT)  # all of one size: a needle must fit the last one too
    documents: list[list[str]] = []
    document: list[str] = []
    closing = cost("\n\n")
    total = closing
    for sentence in filler:
        tokens = cost(sentence)
        if total + tokens > length:
            break
        if document and total + tokens > share * (len(documents) + 1):
            documents.append(document)
            document, total = [], total + closing
        document.append(sentence)
        total += tokens
    if document:
        documents.append(document)
    if not documents:
        raise InvalidRequestError(
            f"a haystack of {length} tokens cannot hold one sentence of its text: pass a larger --length"
        )
    return documents


def cut_text(text: str, most: int, count: Count) -> list[Document]:
    """A text as documents of whole sentences with `most` tokens, or what one sentence has."""
    parts, part, used = [], "", 0
    for sentence in _AFTER_SENTENCE.split(text):
        tokens = count(sentence)
        if part.strip() and used + tokens > most:
            parts.append(part)
            part, used = "", 0
        part, used = part + sentence, used + tokens
    parts += [part] if part.strip() else []
    return [document(number, [part]) for number, part in enumerate(parts)]


def document(number: int, parts: Sequence[str]) -> Document:
    """A document of some sentences."""
    return Document(text="".join(parts).strip(), id=str(number))


def hide(
    documents: Sequence[Sequence[str]],
    needles: Sequence[tuple[float, str]],
    count: Count,
    keep_first: bool = False,
) -> dict[int, Document]:
    """The documents that hold the needles, by number.

    Args:
        documents: sentences of every document.
        needles: depth, 0 to 1, and sentence, with white space before it unless a space will do; needles at one depth keep
            their order.
        count: tokens of a text.
        keep_first: never displace the very first sentence of all.

    Raises:
        InvalidRequestError: the needles do not fit the document that they belong to.
    """
    inserted: dict[int, list[tuple[int, str]]] = {}
    for depth, needle in needles:
        place = min(max(depth, 0.0), 1.0) * len(documents)
        number = min(int(place), len(documents) - 1)
        before = round((place - number) * len(documents[number]))
        inserted.setdefault(number, []).append((max(before, int(keep_first and number == 0)), needle))
    return {number: _with_needles(number, documents[number], own, count) for number, own in inserted.items()}


def _with_needles(number: int, parts: Sequence[str], needles: list[tuple[int, str]], count: Count) -> Document:
    budget = count("".join(parts).strip() + "\n\n")
    mixed: list[tuple[str, bool]] = [(part, False) for part in parts]
    for before, needle in sorted(needles, key=lambda n: n[0])[::-1]:  # from the end, so that no place moves
        mixed.insert(before, (needle if needle[0].isspace() else " " + needle, True))
    while True:
        made = document(number, [part for part, _ in mixed])
        if count(made.text + "\n\n") <= budget:
            return made
        filler = [i for i, (_, is_needle) in enumerate(mixed) if not is_needle]
        if len(filler) < 2:
            needed = count("".join(" " + needle for _, needle in needles))
            raise InvalidRequestError(
                f"the needles of one draw take {needed} tokens and do not fit a document of {budget}: pass a larger --length"
            )
        del mixed[filler[-1]]
