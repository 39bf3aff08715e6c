"""Passkey: a number in repeated sentences that mean nothing (landmark attention, arXiv 2305.16300; LongHeads, 2402.10685).

The filler is those papers' five sentences; the instruction before it, the key on a line of its own and the question keep
their form: the prompt ends with the words before the number. Right is an answer whose first whole number is the key.
"""

import random
from itertools import chain

from reattention_bench.case import Case, Group, Size
from reattention_bench.haystack import NOISE, cut, document, hide, sentences
from reattention_bench.metrics import first_integer
from reattention_bench.tasks.base import Task, counter
from reattention_core.tokens import PlainTokenizer

INSTRUCTION = (
    "There is important information hidden in a lot of text that does not matter. Find it and memorize it. "
    "There will be a question about it."
)
QUESTION = "What is the pass key?"


class Passkey(Task):
    """See the top of this file."""

    name = "passkey"
    summary = "a number in repeated filler; right if the first number of the answer is it"
    question_form = "\n{question}"
    max_new_tokens = 10

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group a length; only the key's document differs between draws."""
        count, made = counter(tokens), []
        for length in size.lengths or (4000,):
            filler = sentences(size.haystack or "noise", size.data)
            parts = cut(chain([INSTRUCTION, "\n" + NOISE[0].strip()], filler), length, count)
            cases = []
            for split, seed, depth in size.spots(10):
                key = str(random.Random(f"passkey {seed}").randint(1, 50_000))
                changes = hide(
                    parts,
                    [(depth, f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")],
                    count,
                    keep_first=True,
                )
                case = Case(
                    task=self.name,
                    length=length,
                    seed=seed,
                    split=split,
                    depth=depth,
                    question=f"{QUESTION} The pass key is",
                    query=QUESTION,
                    answers=(key,),
                    gold=frozenset(map(str, changes)),
                    changes=changes,
                )
                cases.append(case)
            made.append(Group([document(i, part) for i, part in enumerate(parts)], cases, pieces=True))
        return made

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """1 if the first whole number of the answer is the key."""
        return {"score": first_integer(answer, case.answers[0])}
