"""The interface of every task; knows no task."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from reattention_bench.case import Case, Group, Size
from reattention_core.tokens import PlainTokenizer


class Task(ABC):
    """What is asked, of which documents, and how an answer is scored.

    Attributes:
        name: on the command line and in the rows.
        summary: one line for the help.
        question_form: what a question becomes, see `Config`; None for the engine's own.
        max_new_tokens: tokens of an answer at most.
        stop: strings that end an answer.
        reads: whether nothing is asked and the task measures how likely a text is.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    question_form: ClassVar[str | None] = None
    max_new_tokens: ClassVar[int] = 32
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    reads: ClassVar[bool] = False

    @abstractmethod
    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """All cases, by the documents they share; made before any model is loaded.

        Raises:
            InvalidRequestError: the size is not possible, or data is missing; the message says what to change.
        """

    @abstractmethod
    def score(self, case: Case, answer: str) -> dict[str, float]:
        """Scores of an answer by name; `score` is the one that tables and plots show."""


FORM = "\nQuestion: {question}"
"""The form of tasks whose questions end with the first words of the answer."""


def counter(tokens: PlainTokenizer) -> Callable[[str], int]:
    """A function that counts a text's tokens."""
    return lambda text: len(tokens.encode(text).ids)
