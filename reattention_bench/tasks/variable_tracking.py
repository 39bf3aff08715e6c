"""Variable tracking by RULER's definition (arXiv 2404.06654): one chain of four assignments that pass a number on.

The first variable gets a number, each later one the variable before it, in this order through the haystack; all five names
are asked for. Scored by string_match_all. RULER shows one solved example before; here none is shown.
"""

import random
import string

from reattention_bench.case import Case, Group, Size
from reattention_bench.haystack import cut, document, hide, sentences
from reattention_bench.metrics import string_match_all
from reattention_bench.tasks.base import FORM, Task, counter
from reattention_core.tokens import PlainTokenizer

HOPS = 4


class VariableTracking(Task):
    """See the top of this file."""

    name = "variable_tracking"
    summary = "five variables that hold one number through a chain of assignments"
    question_form = FORM
    max_new_tokens = 48

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group a length; only the assignments' documents differ between draws."""
        count, made = counter(tokens), []
        for length in size.lengths or (4000,):
            parts = cut(sentences(size.haystack or "noise", size.data), length, count)
            cases = []
            for split, seed, _ in size.spots(10):
                rng = random.Random(f"{self.name} {seed}")
                names: dict[str, None] = {}
                while len(names) < HOPS + 1:
                    names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
                value, chain = str(rng.randint(10_000, 99_999)), list(names)
                given = [value, *(f"VAR {name}" for name in chain)]
                assignments = [f"VAR {name} = {what}." for name, what in zip(chain, given, strict=False)]
                depths = sorted(rng.random() for _ in chain)
                changes = hide(parts, list(zip(depths, assignments, strict=True)), count)
                query = f"Find all variables that are assigned the value {value} in the text above."
                case = Case(
                    task=self.name,
                    length=length,
                    seed=seed,
                    split=split,
                    question=f"{query}\nAnswer: According to the chain of variable assignment in the text above, {len(chain)} "
                    f"variables are assigned the value {value}, they are:",
                    query=query,
                    answers=tuple(chain),
                    gold=frozenset(map(str, changes)),
                    changes=changes,
                )
                cases.append(case)
            made.append(Group([document(i, part) for i, part in enumerate(parts)], cases, pieces=True))
        return made

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """Share of the variables that stand in the answer."""
        return {"score": string_match_all(answer, case.answers)}
