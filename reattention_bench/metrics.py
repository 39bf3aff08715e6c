"""Scores of answers, rankings and shares, by their published definitions; knows no task and no model."""

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from math import sqrt

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_INTEGER = re.compile(r"\d+")


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the answer, whatever the case of letters (RULER, arXiv 2404.06654)."""
    text = _CONTROL.sub("\n", answer).strip().lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(answer: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the answer, whatever the case of letters (RULER, arXiv 2404.06654)."""
    text = _CONTROL.sub("\n", answer).strip().lower()
    return float(any(reference.lower() in text for reference in references))


def first_integer(answer: str, reference: str) -> float:
    """1 if the first whole number of the answer is the reference (landmark attention's passkey, arXiv 2305.16300)."""
    found = _INTEGER.search(answer)
    return float(found is not None and found.group() == reference)


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces (arXiv 1606.05250)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains(answer: str, references: Sequence[str]) -> float:
    """1 if a reference, in SQuAD's normal form, stands in the answer (Lost in the Middle's best_subspan_em)."""
    text = normalise(answer)
    return float(any(normalise(reference) in text for reference in references))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference in SQuAD's normal form."""
    return float(any(normalise(answer) == normalise(reference) for reference in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """SQuAD's F1 over words, the best of the references."""
    return max(_f1(normalise(answer).split(), normalise(reference).split()) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    if not answer or not reference:
        return float(answer == reference)
    return 2 * common / (len(answer) + len(reference))


def recall_at(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """1 if all gold documents are among the first `k`: a question that needs two is not answered by one."""
    return float(set(gold) <= set(ranked[:k]))


def wilson(mean: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, 95 % with the default `z`.

    For scores between 0 and 1 that are no shares of right answers it is an approximation on the wide side: no score in
    [0, 1] varies more than one that is 0 or 1.
    """
    if n == 0:
        return 0.0, 1.0
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
