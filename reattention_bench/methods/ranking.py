"""Evidence of pages becomes a ranking of documents; knows no rule, and of a rule's reader only its evidence."""

import torch
from pydantic import PrivateAttr

from reattention_core.cache.pages import PAGE
from reattention_core.corpus import Corpus
from reattention_core.select import Context, Reader, Selector
from reattention_core.select.base import Rotate

MOST = 10
"""Documents of a ranking: recall is asked at 1, 3, 5 and 10."""


class Watched(Selector):
    """Another selector, whose last reader can be asked for its evidence afterwards.

    Attributes:
        inner: the rule.
    """

    name = "watched"

    inner: Selector
    _readers: list[Reader] = PrivateAttr(default_factory=list)

    @property
    def evidence(self) -> torch.Tensor | None:
        """Evidence [P] of the last request, or None where its reader has none."""
        return self._readers[-1].evidence if self._readers else None

    def reader(self, context: Context) -> Reader:
        """The other selector's reader."""
        self._readers[:] = [self.inner.reader(context)]
        return self._readers[0]

    @property
    def summary_size(self) -> int:
        """The other selector's."""
        return self.inner.summary_size

    def summarise(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotate: Rotate, scaling: float
    ) -> torch.Tensor:
        """The other selector's."""
        return self.inner.summarise(query, key, value, rotate, scaling)


def rank(corpus: Corpus, evidence: torch.Tensor) -> list[str]:
    """Ids of the documents with the most evidence, best first; those without any are left out.

    Args:
        corpus: whose pages they are.
        evidence: [P] float32.
    """
    starts = torch.tensor([document.start // PAGE for document in corpus.documents], device=evidence.device)
    pages = torch.arange(len(evidence), device=evidence.device)
    owner = torch.searchsorted(starts, pages, right=True) - 1
    total = evidence.new_zeros(len(starts)).index_add_(0, owner[owner >= 0], evidence[owner >= 0])
    best = total.sort(descending=True, stable=True)
    found = best.indices[best.values > 0][:MOST].tolist()
    return [corpus.documents[number].document.id for number in found]
