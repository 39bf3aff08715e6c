"""Perplexity against position: the same words of a book after more and more of the text before them.

A case scores the last 512 tokens of a passage that is `length` tokens long. The passages of one seed end at the same place,
so that methods and lengths are compared on the same words, each at position length - 512 to length.
"""

from math import exp
from pathlib import Path

from reattention_bench.case import Case, Group, Size
from reattention_bench.tasks.base import Task
from reattention_core.errors import InvalidRequestError
from reattention_core.tokens import PlainTokenizer

SCORED = 512


class Perplexity(Task):
    """See the top of this file."""

    name = "perplexity"
    summary = "how likely the same words of a book are after more and more of it"
    reads = True

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group; a case for every length and seed."""
        path = Path(size.haystack) if size.haystack else size.data / "state_union.txt"
        if not path.is_file():
            raise InvalidRequestError(
                f"there is no long text {str(path)!r} to read: pass the folder that holds it with --data, or the path of a book "
                "with --haystack"
            )
        lengths = size.lengths or (2000, 4000)
        if min(lengths) <= SCORED:
            raise InvalidRequestError(
                f"perplexity scores the last {SCORED} tokens, got a length of {min(lengths)}: pass a larger --length"
            )
        ids = tokens.encode(path.read_text(encoding="utf-8")).ids
        spare = len(ids) - max(lengths)
        if spare < 0:
            raise InvalidRequestError(
                f"{path} has {len(ids):,} tokens and the longest --length is {max(lengths):,}: pass a longer text or less"
            )
        cases = []
        for length in lengths:
            for split, seed, place in size.spots(3):
                end = max(lengths) + int(place * spare)
                cases.append(Case(self.name, length, seed, split, ids=ids[end - length : end], last=SCORED))
        return [Group((), cases)]

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """Perplexity of a mean negative log likelihood, which methods give in words' place."""
        return {"score": exp(float(answer))}
