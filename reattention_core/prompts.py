r"""What a question becomes before the model reads it; knows no cache and no selection.

Raw completion, not a chat template: the bundled model answers "Question: …\\nAnswer:" far better (see the README).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reattention_core.config import Config
from reattention_core.errors import EmptyPromptError, InvalidRequestError
from reattention_core.tokens import PlainTokenizer

NOTHING = "What is it?"
"""The empty question: what every question's form asks of a corpus, to be subtracted from its evidence."""

Turn = tuple[str, str]
"""A question and its answer, earlier in the conversation."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of a question in its form.

    Attributes:
        ids: earlier turns, then the question.
        asking: which of them are the question.
        empty: the same form with nothing asked.
    """

    ids: list[int]
    asking: slice
    empty: list[int]


def build_prompt(tokenizer: PlainTokenizer, config: Config, question: str, history: Sequence[Turn] = ()) -> Prompt:
    """Put a question, and the turns before it, into the configured form.

    Args:
        tokenizer: encodes text so that no part of it becomes a control token.
        config: names the form.
        question: what is asked.
        history: earlier turns, oldest first.

    Raises:
        EmptyPromptError: the question is empty or white space.
        InvalidRequestError: it is not a string, or the history is no list of (question, answer).
    """
    if not isinstance(question, str):
        raise InvalidRequestError(f"a question is a str, got {type(question).__name__}")
    if not question.strip():
        raise EmptyPromptError("the question is empty: ask something, for example 'What does it say about …?'")
    before: list[int] = []
    for asked, answered in _turns(history):
        turn = config.question_form.replace("{question}", asked.strip()) + " " + answered.strip()
        before += tokenizer.encode(turn).ids
    ids = tokenizer.encode(config.question_form.replace("{question}", question.strip())).ids
    empty = tokenizer.encode(config.question_form.replace("{question}", NOTHING)).ids
    return Prompt(before + ids, slice(len(before), len(before) + len(ids)), empty)


def _turns(history: Sequence[Turn]) -> Sequence[Turn]:
    """The history, if it is one."""
    turns: list[Any] = list(history) if isinstance(history, (list, tuple)) else [history]
    for turn in turns:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise InvalidRequestError(f"history is a list of (question, answer) pairs of str, got {turn!r}")
    return turns
