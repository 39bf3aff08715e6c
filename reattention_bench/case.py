"""One question to be put to every method, and how all cases are sized and split; knows no task, no method and no model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reattention_core.documents import Document

Split = Literal["tune", "report"]
SPLITS: tuple[Split, ...] = ("tune", "report")
"""Choose on `tune`, publish on `report`: no case is in both."""


@dataclass(frozen=True)
class Case:
    """One question over the documents of its group.

    Attributes:
        task: name of the task.
        length: tokens of documents that were asked for.
        seed: of the draw; for a question out of a file its number there.
        split: which half it belongs to.
        question: what is asked, with the words that begin the answer where the task's definition has them.
        query: the bare question, for methods that search.
        answers: what must be found in the answer.
        depth: where the evidence lies, 0 for the beginning and 1 for the end; None where it lies in several places.
        name: of a question out of a file, or nothing.
        gold: ids of the documents that hold the evidence.
        changes: documents of the group, by number, that read otherwise in this case (the needles are in them).
        answered: whether the answer is scored; not where it stands in the question itself.
        ids: for perplexity, the tokens to read; nothing is asked then.
        last: for perplexity, how many of them are scored, counted from the end.
    """

    task: str
    length: int
    seed: int
    split: Split
    question: str = ""
    query: str = ""
    answers: tuple[str, ...] = ()
    depth: float | None = None
    name: str = ""
    gold: frozenset[str] = frozenset()
    changes: Mapping[int, Document] = field(default_factory=dict)
    answered: bool = True
    ids: Sequence[int] = ()
    last: int = 0


@dataclass(frozen=True)
class Group:
    """Cases over the same documents, which are therefore read once.

    Attributes:
        documents: what is read.
        cases: what is asked.
        pieces: whether the documents are pieces of one text, which a prompt puts together again; otherwise a blank line
            closes each.
    """

    documents: Sequence[Document]
    cases: Sequence[Case]
    pieces: bool = False

    def prompt(self, texts: Sequence[str]) -> str:
        """What a prompt has before the question: documents, or what was found of them, titles included."""
        return " ".join(texts) if self.pieces else "".join(text + "\n\n" for text in texts)

    def of(self, case: Case) -> list[Document]:
        """The documents as they read in a case."""
        return [case.changes.get(number, document) for number, document in enumerate(self.documents)]


@dataclass(frozen=True)
class Size:
    """How large and how many.

    Attributes:
        lengths: tokens of documents; a task's own where empty.
        depths: places of the evidence; spread evenly over the draws where empty.
        draws: cases for each length (and depth) of a split; for questions out of a file, how many of them; None for the
            task's own number.
        splits: which halves.
        data: folder of corpora and texts; see `reattention bench --help`.
        haystack: `essays`, `noise`, `needles` or the path of a text; a task's own where None.
        titles: whether documents keep their titles.
    """

    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    draws: int | None = None
    splits: tuple[Split, ...] = ("report",)
    data: Path = Path("data")
    haystack: str | None = None
    titles: bool = True

    def spots(self, draws: int) -> list[tuple[Split, int, float]]:
        """Split, seed and depth of every draw of one length: even seeds are for tuning, odd ones for reporting."""
        draws = draws if self.draws is None else self.draws
        places = [((number + 0.5) / draws, number) for number in range(draws)]
        if self.depths:
            places = [(depth, number) for depth in self.depths for number in range(draws)]
        return [(split, 2 * number + SPLITS.index(split), depth) for split in self.splits for depth, number in places]


def split_of(name: str) -> Split:
    """The half that a named question belongs to, by a hash of its name."""
    return SPLITS[hashlib.sha256(name.encode()).digest()[0] % 2]
