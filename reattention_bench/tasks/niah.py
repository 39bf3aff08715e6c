"""Needles in a haystack by RULER's definitions (arXiv 2404.06654): single, several keys, values or questions.

A needle says "One of the special magic numbers for KEY is: NUMBER."; the question asks for the numbers of one key, or of
four, and ends with the first words of the answer. Scored by RULER's string_match_all. Differences from RULER: the model's
instruction before the haystack is left out (the documents are read before anything is asked), and answers may have 32
tokens for one number and 96 for four, where RULER allows 128.
"""

import random
from dataclasses import dataclass

from reattention_bench.case import Case, Group, Size
from reattention_bench.haystack import cut, document, hide, sentences
from reattention_bench.metrics import string_match_all
from reattention_bench.tasks.base import FORM, Task, counter
from reattention_bench.words import keys
from reattention_core.tokens import PlainTokenizer

Needle = tuple[float, str]


@dataclass(frozen=True)
class Draw:
    """The needles of one case.

    Attributes:
        needles: depth and sentence of every needle, distractors included.
        asked: keys that are asked for.
        answers: their numbers.
        sought: sentences that hold the answers.
    """

    needles: list[Needle]
    asked: list[str]
    answers: tuple[str, ...]
    sought: list[str]


class Niah(Task):
    """A needle for each of `n_keys` keys and `n_values` values; `n_asked` of the keys are asked for."""

    question_form = FORM
    n_keys = 1
    n_values = 1
    n_asked = 1

    def draw(self, seed: int, depth: float) -> Draw:
        """Needles of a seed: a single sought one lies at `depth`, all others anywhere."""
        rng = random.Random(f"{self.name} {seed}")
        needles, answers, sought = [], [], []
        names = keys(rng, self.n_keys)
        alone = self.n_asked * self.n_values == 1
        for number, name in enumerate(names):
            for _ in range(self.n_values):
                value = str(rng.randint(1_000_000, 9_999_999))
                text = f"One of the special magic numbers for {name} is: {value}."
                place = depth if alone and number == 0 else rng.random()
                needles.append((place, text))
                if number < self.n_asked:
                    answers.append(value)
                    sought.append(text)
        return Draw(needles, names[: self.n_asked], tuple(answers), sought)

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group a length; only the needles' documents differ between draws."""
        count, made = counter(tokens), []
        for length in size.lengths or (4000,):
            parts = cut(sentences(size.haystack or "essays", size.data), length, count)
            cases = []
            for split, seed, depth in size.spots(10):
                draw = self.draw(seed, depth)
                changes = hide(parts, draw.needles, count)
                gold = [str(i) for i, made_of in changes.items() if any(text in made_of.text for text in draw.sought)]
                query, question = _question(draw)
                case = Case(
                    task=self.name,
                    length=length,
                    seed=seed,
                    split=split,
                    depth=depth if len(draw.answers) == 1 else None,
                    question=question,
                    query=query,
                    answers=draw.answers,
                    gold=frozenset(gold),
                    changes=changes,
                )
                cases.append(case)
            made.append(Group([document(i, part) for i, part in enumerate(parts)], cases, pieces=True))
        return made

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """Share of the numbers that stand in the answer."""
        return {"score": string_match_all(answer, case.answers)}


def _question(draw: Draw) -> tuple[str, str]:
    """The bare question, and the question with the first words of its answer."""
    names = draw.asked[0] if len(draw.asked) == 1 else ", ".join(draw.asked[:-1]) + ", and " + draw.asked[-1]
    if len(draw.answers) == 1:
        query = f"What is the special magic number for {names} mentioned in the provided text?"
        return query, f"{query}\nAnswer: The special magic number for {names} mentioned in the provided text is"
    query = f"What are all the special magic numbers for {names} mentioned in the provided text?"
    return query, f"{query}\nAnswer: The special magic numbers for {names} mentioned in the provided text are"


class NiahSingle(Niah):
    """One needle."""

    name = "niah_single"
    summary = "one number under one key in essays"


class NiahMultiKey(Niah):
    """Four keys, one of which is asked for."""

    name = "niah_multikey"
    summary = "four keys with a number each, one is asked for"
    n_keys = 4


class NiahMultiValue(Niah):
    """One key with four numbers, all of which are asked for."""

    name = "niah_multivalue"
    summary = "one key with four numbers, all are asked for"
    n_values = 4
    max_new_tokens = 96


class NiahMultiQuery(Niah):
    """Four keys, all of which are asked for."""

    name = "niah_multiquery"
    summary = "four keys with a number each, all are asked for"
    n_keys, n_asked = 4, 4
    max_new_tokens = 96
