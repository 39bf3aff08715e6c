"""Consensus: the model says which passages a question asks for, reads the question behind each, and answers from the likeliest.

Our own step beyond the papers, in three stages. Recall: trusted heads say how much the question asks for every page (`recall`),
and a layer's values how close each comes to its words (`closeness`). Comparison: behind which of the best passages is the
question likeliest? By Bayes' rule a passage's score is that log-likelihood plus what recall has for it, and scores become
shares. Hops: a further passage is read where the question gets much likelier with it, because what a window holds beyond the
evidence hurts a small model more than a missing page does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import ContextTooLongError
from reattention_core.select.base import Context, Head, Question, Reader, Selection, Selector
from reattention_core.select.closeness import closeness, rarity
from reattention_core.select.fixed import Everything, Settled
from reattention_core.select.hops import Candidates, hop
from reattention_core.select.passages import Passages
from reattention_core.select.reattention import ReAttention
from reattention_core.select.recall import recall

TEMPERATURE = 3.0
"""Divides scores with likelihoods before they become shares: a small model's are surer than they are right (docs/quality.md)."""

FAINT = 1e-6
"""A page's evidence is not taken to be less than this: trusted heads overlook what its words would tell."""

COMPARED = {"cuda": 96, "cpu": 24}
"""Passages that are compared where nobody says how many: a CPU takes about a tenth of a second for each."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a question found.

    Attributes:
        passages: of the corpus.
        order: numbers of the passages that were compared, best first.
        read: numbers of those to read, most important first.
        evidence: [P] float32, each page's share of all evidence, 0 beyond the compared passages.
    """

    passages: Passages
    order: list[int]
    read: list[int]
    evidence: torch.Tensor


class Consensus(Selector):
    """Recall by trusted heads, comparison by likelihood, then re-read.

    Attributes:
        heads: how many of the model's heads are trusted in recall.
        candidates: passages that are compared, when left out 96 and on a CPU 24; 0 ranks by recall alone, which is quicker and
            finds less.
        closeness: weight of how close a passage comes to the question's words beside its evidence, both in nats; 0 leaves it
            out.
        passage: pages of a passage at most; longer documents are cut in equal parts.
        max_passages: passages that are read at most.
        share: a passage is read when its share is at least this part of the best one's.
        gain: a further passage is read when it makes the question likelier by this many nats.
        neighbours: pages of its document on either side of a passage that are read with it.
        pages: pages that are read of a part of a longer document, its neighbours included, at most: the nearest to the one
            with the most evidence. A document that is one passage is read whole.
    """

    name = "consensus"

    heads: int = Field(default=12, ge=1, le=32)
    candidates: int | None = Field(default=None, ge=0)
    closeness: float = Field(default=1.0, ge=0)
    passage: int = Field(default=8, ge=1)
    max_passages: int = Field(default=4, ge=1)
    share: float = Field(default=0.5, ge=0, le=1)
    gain: float = Field(default=6.0, ge=0)
    neighbours: int = Field(default=1, ge=0)
    pages: int = Field(default=4, ge=1)

    def reader(self, context: Context) -> Reader:
        """A reader for one request: with a corpus, everything up to the re-reading happens here.

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
        ranking = self.rank(pages, question, context.scaling, room)
        return _Reader(pages, ranking.evidence, self.choose(ranking, room))

    def rank(self, pages: Pages, question: Question, scaling: Sequence[float], room: int) -> Ranking:
        """Find the passages of a question.

        Args:
            pages: the corpus; page 0 is the sink.
            question: what is asked.
            scaling: each layer's factor on q·k.
            room: pages that may be read at once.
        """
        longest = min(self.passage, room)
        key = f"passages {longest}"
        if key not in question.memo:
            question.memo[key] = Passages.cut(pages, longest)
        passages: Passages = question.memo[key]
        recalled, candidates = self._recall(pages, passages, question, scaling)
        if not len(candidates.order):
            return Ranking(passages, [], [], recalled)
        if self.candidates == 0:
            score, read, temperature = candidates.support(), [0], 1.0
        else:
            candidates.heard = question.listen([passages.pages(p) for p in candidates.order.tolist()]).cpu()
            score, read = hop(passages, question, candidates, room, self.max_passages, self.gain)
            temperature = TEMPERATURE
        order, first = candidates.order, read[0]
        near = (score[first] - score < -temperature * torch.tensor(self.share).log()).nonzero().flatten().tolist()
        read += [one for one in sorted(near, key=lambda one: -float(score[one])) if one not in read]
        shares = (score / temperature).softmax(0)
        total = torch.zeros(passages.n).index_copy_(0, order, shares)
        evidence = recalled / passages.total(recalled).clamp(min=FAINT)[passages.of] * total[passages.of]
        ranked = order[score.sort(descending=True, stable=True).indices]
        chosen = order[torch.tensor(read[: self.max_passages])]
        return Ranking(passages, ranked.tolist(), chosen.tolist(), evidence)

    def _recall(
        self, pages: Pages, passages: Passages, question: Question, scaling: Sequence[float]
    ) -> tuple[torch.Tensor, Candidates]:
        """Evidence of every page [P], none of it nothing but the sink's, and the passages that are compared, best first."""
        trusted, asked = question.trusted(), question.probe(question.ids, question.asking)
        recalled = self.recalled(pages, question, asked.queries, scaling, trusted.heads[: self.heads]).cpu()
        recalled[1:] = recalled[1:].clamp(min=FAINT) * (pages.filled[1:].cpu() > 0)
        same, close = (
            passages.most(closeness(pages, asked.values[layer][:, question.wording], layer))[:, 1:].cpu()
            for layer in (0, trusted.layer)
        )
        every = Candidates(
            torch.arange(1, passages.n), passages.total(recalled)[1:].log(), close, self.closeness * rarity(same)
        )
        most = self.candidates
        if most is None:
            most = COMPARED.get(pages.filled.device.type, COMPARED["cuda"])
        best = every.support().sort(descending=True, stable=True).indices[: most or None]
        return recalled, Candidates(every.order[best], every.evidence[best], close[:, best], every.rare)

    def recalled(
        self,
        pages: Pages,
        question: Question,
        queries: Sequence[torch.Tensor],
        scaling: Sequence[float],
        heads: Sequence[Head],
    ) -> torch.Tensor:
        """Evidence of every page, [P] float32; arguments as `recall` has them."""
        return recall(pages, question, queries, scaling, heads)

    def choose(self, ranking: Ranking, room: int) -> torch.Tensor:
        """Which pages to read, in reading order and at most `room`: of each passage the nearest to its strongest.

        Documents stand by rising importance: what is next to the question counts most in a small model's answer, and what
        else is read costs least in front of it. Within a document pages keep their order.
        """
        by_document: dict[int, list[int]] = {}
        count = 0
        for passage in ranking.read:
            own = ranking.passages.pages(passage)
            strongest = int(own[ranking.evidence[own].argmax()])
            chosen = by_document.setdefault(int(ranking.passages.document_first[passage]), [])
            wanted = [page for page in ranking.passages.pages(passage, self.neighbours).tolist() if page not in chosen]
            wanted.sort(key=lambda page: abs(page - strongest))
            most = len(wanted) if ranking.passages.whole(passage) else self.pages
            added = wanted[: min(most, room - count)]
            chosen += added
            count += len(added)
        order = [page for chosen in reversed(by_document.values()) for page in sorted(chosen)]
        return torch.tensor(order, dtype=torch.int64)


class _Reader(Settled):
    """The sink and the chosen pages, the same for all layers and all tokens of the answer."""

    def __init__(self, pages: Pages, evidence: torch.Tensor, chosen: torch.Tensor) -> None:
        staged, rows = pages.staged([chosen])
        read = torch.cat([torch.zeros(1, dtype=torch.int64), *rows]).to(pages.filled.device)
        super().__init__(Selection.of_pages(staged, read), evidence)
        self.pages, self._chosen = staged, chosen

    def cited(self, most: int = 5) -> torch.Tensor:
        return self._chosen.sort().values
