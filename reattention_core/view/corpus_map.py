"""A corpus as a few hundred cells in reading order, each as strong as the evidence in it; knows no HTML."""

from collections import Counter
from dataclasses import dataclass

from reattention_core.cache.pages import PAGE, pages_for
from reattention_core.evidence import Evidence
from reattention_core.view.excerpts import shown

CELLS = 480
"""Cells of a map at most: what a person can look over, and a page can hold of a corpus of any size."""

TITLE = 120
"""Characters of a title that are shown."""


@dataclass(frozen=True)
class Cell:
    """Some neighbouring pages of the corpus.

    Attributes:
        label: which documents, and how much evidence.
        strength: 0 to 100: how much evidence, against the cell with the most.
        passage: number of the passage that was read there, or None.
        odd: whether the document it begins in has an odd number: neighbours can be told apart.
    """

    label: str
    strength: int
    passage: int | None
    odd: bool


def title(evidence: Evidence, number: int) -> str:
    """What a document is called."""
    document = evidence.documents[number].document
    return shown(document.title or document.source or document.id, TITLE)


def cells(evidence: Evidence, passage_of: dict[int, int]) -> list[Cell]:
    """The map of a corpus.

    Args:
        evidence: of a question.
        passage_of: pages that were read, with the numbers of their passages.
    """
    owners = [n for n, document in enumerate(evidence.documents) for _ in range(pages_for(document.n_tokens))]
    pages = [
        document.start // PAGE + one for document in evidence.documents for one in range(pages_for(document.n_tokens))
    ]
    width = max(-(-len(pages) // CELLS), 1)
    shares = evidence.pages.tolist()
    runs = [slice(start, start + width) for start in range(0, len(pages), width)]
    sums = [sum(shares[page] for page in pages[run]) for run in runs]
    most = max(sums, default=0.0) or 1.0
    return [
        Cell(
            label=f"{_names(evidence, owners[run])}: {total:.1%} of the evidence",
            strength=round(100 * (total / most) ** 0.5),
            passage=next((passage_of[page] for page in pages[run] if page in passage_of), None),
            odd=bool(owners[run][0] % 2),
        )
        for run, total in zip(runs, sums, strict=True)
    ]


def _names(evidence: Evidence, owners: list[int]) -> str:
    different = len(Counter(owners))
    more = f" and {different - 1:,} more" if different > 1 else ""
    return title(evidence, owners[0]) + more
