"""Which passages are read together; knows neither recall nor how passages become a window.

A question in two steps asks for a passage that shares no word with it. How much likelier the question is behind two passages
than behind one tells what the second adds: it is read where that is much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reattention_core.select.base import Question
from reattention_core.select.passages import Passages

BEHIND = 1.0
"""Nats by which whatever is read with the best passage stays behind it."""

HOP = 3
"""One of so many candidates is tried behind the passages that are read already: the best of them."""


@dataclass(eq=False)
class Candidates:
    """Passages that are compared, and what speaks for each.

    Attributes:
        order: [C] int64, their numbers.
        evidence: [C] float32, logarithm of what the trusted heads give each.
        close: [Q, C] float32, how close each comes to every word of the question.
        rare: [Q] float32, how much each word tells, weighed.
        heard: [C] float32, log-likelihood of the question behind each alone.
    """

    order: torch.Tensor
    evidence: torch.Tensor
    close: torch.Tensor
    rare: torch.Tensor
    heard: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def support(self, read: Sequence[int] = ()) -> torch.Tensor:
        """What speaks for each, together with the candidates that are `read`, before the question is read behind it: [C]."""
        close = self.close
        if read:
            close = torch.maximum(close, close[:, list(read)].amax(1, keepdim=True))
        return self.evidence + self.rare @ close


def hop(
    passages: Passages, question: Question, candidates: Candidates, room: int, most: int, gain: float
) -> tuple[torch.Tensor, list[int]]:
    """Try further passages behind those that are read: the scores after the first hop, and the candidates to read.

    Args:
        passages: of the corpus.
        question: what is asked.
        candidates: compared alone.
        room: pages that may be read at once.
        most: passages that are read at most.
        gain: nats by which a further passage must make the question likelier.
    """
    order, heard = candidates.order, candidates.heard
    score = candidates.support() + heard
    first = int(score.argmax())
    read, likeliest, after = [first], float(heard[first]), score
    while len(read) < most:
        before = torch.cat([passages.pages(int(order[one])) for one in read])
        # Words that stand in what is read need not stand in what is read with it.
        beside = candidates.support(read)
        others = [int(one) for one in (beside + heard).sort(descending=True, stable=True).indices]
        fitting = [one for one in others if len(before) + len(passages.pages(int(order[one]))) <= room]
        others = [one for one in fitting if one not in read][: max(len(order) // HOP, 1)]
        if not others:
            break
        together = question.listen([torch.cat([before, passages.pages(int(order[one]))]) for one in others]).cpu()
        best = int(together.argmax())
        if float(together[best]) - likeliest < gain:
            break
        if len(read) == 1:
            # The question asks for two: what makes it likelier behind the first passage ranks higher, read or not.
            both = together + beside[others]
            lower = both - both.max()
            alone = candidates.evidence + heard
            after = alone + lower.min()
            after[others] = alone[others] + lower
            after[first] = -torch.inf
            above = torch.maximum(after.max() + BEHIND, alone[first])
            after += score[first] - above
            after[first] = score[first]
        read.append(others[best])
        likeliest = float(together[best])
    return after, read
