"""Consensus: the pages that all layers, heads and question tokens agree on, read alike by every layer.

Our own step beyond the papers. Recall: the question is run behind the sink alone; its un-rotated queries score every
page of the corpus. A head's gain is the softmax mass it gives a page, less the mass that an empty question gives it; the
page's evidence is the sum of the gains' squares over all heads, so that heads that know count more than heads that spread.
Re-read: the answer is written while every layer attends to the best pages. How many pages are read follows the evidence,
because what a window holds beyond the evidence hurts a small model more than a missing page.
"""

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import ContextTooLongError
from reattention_core.select.base import Context, Question, Reader, Selection, Selector
from reattention_core.select.fixed import Everything, Settled
from reattention_core.select.reattention import ReAttention
from reattention_kernels import page_evidence


class Consensus(Selector):
    """Recall by evidence, then re-read.

    Attributes:
        max_pages: pages of evidence that are read at most, their neighbours not counted.
        share: a page is read when its evidence is at least this share of the best page's.
        neighbours: pages before and after a read page, of the same document, that are read with it.
    """

    name = "consensus"

    max_pages: int = Field(default=4, ge=1)
    share: float = Field(default=0.25, ge=0, le=1)
    neighbours: int = Field(default=1, ge=0)

    def reader(self, context: Context) -> Reader:
        """A reader for one request: with a corpus, the recall is run here.

        A prompt without a corpus is read whole while it fits the window, and by `reattention` beyond it.

        Raises:
            ContextTooLongError: question and answer leave no room for a page.
        """
        pages, question = context.pages, context.question
        if pages is None or question is None:
            if context.tail <= context.window:
                return Everything()
            return ReAttention.for_window(context.window).reader(context)
        room = (context.window - context.tail) // PAGE - 1
        if room < 1:
            raise ContextTooLongError(
                f"question and answer may take {context.tail} tokens of the model's window of {context.window}, which leaves no "
                "room for a page of the corpus: shorten the question or lower max_new_tokens",
                n_tokens=context.tail,
                limit=context.window,
            )
        gain = self.evidence(pages, question, context.scaling)
        return _Reader(pages, gain, self.choose(pages, gain, room))

    def evidence(self, pages: Pages, question: Question, scaling: Sequence[float]) -> torch.Tensor:
        """How much a question asks for every page of the corpus, [P] float32; the sink's page gets none."""
        if "empty" not in question.memo:
            unasked = question.probe(question.empty, slice(0, len(question.empty)))
            question.memo["empty"] = [*_mass(pages, unasked, scaling)]
        asked = question.probe(question.ids, question.asking)
        total = torch.zeros(pages.n_pages, device=pages.filled.device)
        for mass, nothing in zip(_mass(pages, asked, scaling), question.memo["empty"], strict=True):
            total += (mass - nothing).clamp(min=0).square().sum(0)
        return total

    def choose(self, pages: Pages, gain: torch.Tensor, room: int) -> torch.Tensor:
        """Which pages to read.

        Args:
            pages: the corpus; page 0 is the sink.
            gain: [P] float32, evidence of every page.
            room: pages that fit the window.

        Returns:
            Page numbers [n] int64, rising, n <= room; none where no page has any evidence.
        """
        best = gain.sort(dim=-1, descending=True, stable=True)
        strong = int(((best.values > 0) & (best.values >= self.share * best.values[0])).sum())
        chosen: list[int] = []
        for page in best.indices[: min(strong, self.max_pages)].tolist():
            first = int(pages.first[page])
            near = range(max(page - self.neighbours, 0), min(page + self.neighbours + 1, pages.n_pages))
            wanted = [p for p in near if int(pages.first[p]) == first and p not in chosen]
            wanted.sort(key=lambda p: abs(p - page))
            chosen += wanted[: room - len(chosen)]
        return torch.tensor(sorted(chosen), dtype=torch.int64, device=gain.device)


def _mass(pages: Pages, queries: Sequence[torch.Tensor], scaling: Sequence[float]) -> Iterator[torch.Tensor]:
    """Softmax mass that each layer's queries [H, Q, D] give every page, [H, P] a layer."""
    filled = pages.filled.clone()
    filled[0] = 0
    for layer, query in enumerate(queries):
        yield page_evidence(query, pages.scan(layer), filled, scaling[layer])


class _Reader(Settled):
    """The sink and the chosen pages, the same for all layers and all tokens of the answer."""

    def __init__(self, pages: Pages, gain: torch.Tensor, chosen: torch.Tensor) -> None:
        sink = torch.zeros(1, dtype=torch.int64, device=chosen.device)
        super().__init__(Selection.of_pages(pages, torch.cat([sink, chosen])))
        self.evidence, self._chosen = gain, chosen

    def cited(self, most: int = 5) -> torch.Tensor:
        return self._chosen
