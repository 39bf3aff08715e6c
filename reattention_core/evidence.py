"""Where in a corpus an answer's evidence lies; knows no model and no page layout on a screen.

It holds the documents that the question was put to, so it stays right when the corpus is edited later; their keys and
values it does not hold.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reattention_core.cache.pages import PAGE, pages_for
from reattention_core.sources import ReadDocument


@dataclass(frozen=True, eq=False)
class Evidence:
    """How much every page of a corpus was asked for by one question.

    Attributes:
        question: what was asked.
        documents: of the corpus when it was asked.
        pages: [P] float32, each page's share of all evidence; zeros where the rule gives none. Page 0 is the sink's.
        read: numbers of the pages that the answer rests on, rising.
        strategy: name of the rule.
        model: name of the model.
        corpus_bytes: of the keys and values that all questions share.
    """

    question: str
    documents: Sequence[ReadDocument]
    pages: torch.Tensor
    read: Sequence[int]
    strategy: str
    model: str
    corpus_bytes: int

    @classmethod
    def shares(cls, evidence: torch.Tensor | None, n_pages: int) -> torch.Tensor:
        """What a rule says of every page as shares, which sum to 1 where it says anything.

        Args:
            evidence: [P], as a `Reader` gives it.
            n_pages: P.
        """
        if evidence is None:
            return torch.zeros(n_pages)
        given = evidence.detach().float().cpu().clamp(min=0)
        return given / given.sum().clamp(min=1e-30)

    @property
    def by_document(self) -> list[float]:
        """The share of each document, in their order."""
        return [
            float(self.pages[document.start // PAGE :][: pages_for(document.n_tokens)].sum())
            for document in self.documents
        ]

    def document_of(self, page: int) -> int | None:
        """The number of the document that a page belongs to; None for the sink."""
        number = bisect_right([document.start for document in self.documents], page * PAGE) - 1
        return number if number >= 0 else None
