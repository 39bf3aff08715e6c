"""The passages of a corpus: documents, the long ones in parts of about one length; knows no question."""

from dataclasses import dataclass

import torch

from reattention_core.cache.pages import Pages


@dataclass(frozen=True, eq=False)
class Passages:
    """Runs of pages that are ranked as one.

    Attributes:
        of: [P] int64, which passage each page belongs to, rising; the sink is the first one.
        first: [S] int64, first page of every passage.
        stop: [S] int64, page behind its last.
        document_first: [S] int64, first page of its document.
        document_stop: [S] int64, page behind its document's last.
    """

    of: torch.Tensor
    first: torch.Tensor
    stop: torch.Tensor
    document_first: torch.Tensor
    document_stop: torch.Tensor

    @classmethod
    def cut(cls, pages: Pages, longest: int) -> "Passages":
        """Every document in as few parts as hold at most `longest` pages, as equal as they can be.

        Pages at a document's end that hold nothing belong to its last part and are not among that part's pages.
        """
        begin, filled = pages.first.cpu(), pages.filled.cpu()
        total = len(begin)
        starts, document, count = begin.unique_consecutive(return_inverse=True, return_counts=True)
        held = torch.zeros_like(count).index_add_(0, document, (filled > 0).long())
        within, own = torch.arange(total) - begin, held[document].clamp(min=1)
        parts = -(-own // longest)
        # Page i of n goes to part floor(i * parts / n).
        part = torch.minimum(within * parts // own, parts - 1)
        new = torch.ones(total, dtype=torch.bool)
        new[1:] = (begin[1:] != begin[:-1]) | (part[1:] != part[:-1])
        of = new.cumsum(0) - 1
        first = new.nonzero().squeeze(1)
        last = (starts + held)[document][first]
        stop = torch.minimum(torch.cat([first[1:], torch.tensor([total])]), last)
        return cls(of, first, stop, begin[first], last)

    @property
    def n(self) -> int:
        """How many there are, the sink among them."""
        return len(self.first)

    def total(self, by_page: torch.Tensor) -> torch.Tensor:
        """Sum of a number of every page [P], by passage: [S]."""
        of = self.of.to(by_page.device)
        return by_page.new_zeros(self.n).index_add_(0, of, by_page)

    def most(self, by_page: torch.Tensor) -> torch.Tensor:
        """Largest of numbers of every page [Q, P], by passage: [Q, S]."""
        of = self.of.to(by_page.device).expand_as(by_page)
        return by_page.new_full((len(by_page), self.n), -torch.inf).scatter_reduce_(1, of, by_page, "amax")

    def whole(self, passage: int) -> bool:
        """Whether a passage is all of its document."""
        first, stop = int(self.first[passage]), int(self.stop[passage])
        return first == int(self.document_first[passage]) and stop == int(self.document_stop[passage])

    def pages(self, passage: int, margin: int = 0) -> torch.Tensor:
        """Page numbers of a passage and of `margin` pages of its document on either side, [n] int64."""
        first = max(int(self.first[passage]) - margin, int(self.document_first[passage]))
        return torch.arange(first, min(int(self.stop[passage]) + margin, int(self.document_stop[passage])))
