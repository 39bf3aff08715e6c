"""What a question becomes before the model reads it; knows no selection, and of the cache only how large a page is.

Raw completion, not a chat template, so that any causal model can be asked; docs/quality.md has other forms beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reattention_core.cache.pages import PAGE
from reattention_core.chat_template import render_chat
from reattention_core.config import Config
from reattention_core.errors import ContextTooLongError, EmptyPromptError, InvalidRequestError
from reattention_core.structured.structure import Structure
from reattention_core.tokens import PlainTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING = "What is it?"
"""The empty question: what every question's form asks of a corpus, to be subtracted from its evidence."""

LISTENED = "\nSearch query:"
"""What stands between a passage and a question whose likelihood is compared; of seven forms it ranked best on real searches."""

LISTENED_TOKENS = 128
"""The end of a longer question is compared alone: every passage reads these tokens anew."""

TELL_SCHEMA = "Answer with JSON that follows this schema: "
"""Stands before the schema at the end of the last question."""

Turn = tuple[str, str]
"""A question and its answer, earlier in the conversation."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of a question in its form.

    Attributes:
        ids: the instruction, earlier turns, then the question.
        asking: which of them are the question in its form.
        wording: which of those are its own words.
        empty: the same form with nothing asked.
        listened: the question behind LISTENED, whose likelihood is compared.
        words: which of these are the question.
        question: its text.
        told: tokens of the instruction, which stand first and say nothing of what shall be found.
    """

    ids: list[int]
    asking: slice
    empty: list[int]
    listened: Sequence[int] = ()
    words: slice = field(default_factory=lambda: slice(0, 0))
    wording: slice = field(default_factory=lambda: slice(0, 0))
    question: str = ""
    told: int = 0

    def room(self, window: int, answer: int = 0) -> int:
        """Tokens that are left for documents besides a first page, where the sink and an answer have theirs.

        Args:
            window: tokens that the model can look at.
            answer: tokens that the answer may take.

        Raises:
            ContextTooLongError: not even a page has room.
        """
        reading = len(self.ids) + 2 * PAGE
        if reading + answer <= window:
            return window - reading - answer
        raise ContextTooLongError(
            f"the question, with all that stands before it, takes {reading} tokens (with the sink and one page of documents)"
            + (f" and the answer may take {answer}" if answer else "")
            + f", more than the model's window of {window}: ask a shorter question{' or lower max_new_tokens' if answer else ''}",
            n_tokens=reading + answer,
            limit=window,
        )


def build_prompt(
    tokenizer: PlainTokenizer, config: Config, question: str, history: Sequence[Turn] = (), system: str = ""
) -> Prompt:
    """Put a question, and what stands before it, into the configured form.

    Args:
        tokenizer: encodes text so that no part of it becomes a control token.
        config: names the form.
        question: what is asked.
        history: earlier turns, oldest first.
        system: an instruction, before all of that.

    Raises:
        EmptyPromptError: the question is empty or white space.
        InvalidRequestError: question or instruction is not a string, or the history is no list of (question, answer).
    """
    for what, text in (("a question", question), ("an instruction", system)):
        if not isinstance(text, str):
            raise InvalidRequestError(f"{what} is a str, got {type(text).__name__}")
    if not question.strip():
        raise EmptyPromptError("the question is empty: ask something, for example 'What does it say about …?'")
    told = tokenizer.encode(f"\n{system.strip()}\n").ids if system.strip() else []
    before = list(told)
    for asked, answered in _turns(history):
        turn = config.question_form.replace("{question}", asked.strip()) + " " + answered.strip()
        before += tokenizer.encode(turn).ids
    formed = tokenizer.encode(config.question_form.replace("{question}", question.strip()))
    ids = formed.ids
    empty = tokenizer.encode(config.question_form.replace("{question}", NOTHING)).ids
    begin = config.question_form.index("{question}")
    end = begin + len(question.strip())
    wording = [n for n, (start, stop) in enumerate(formed.spans) if begin < stop and start < end]
    listened = tokenizer.encode(f"{LISTENED} {question.strip()}")
    lead = sum(start < len(LISTENED) for start, _ in listened.spans)
    # Never longer than the question in its own form: where that fits the window, this does.
    words = listened.ids[lead:][-min(LISTENED_TOKENS, max(len(ids) - lead, 1)) :]
    return Prompt(
        before + ids,
        slice(len(before), len(before) + len(ids)),
        empty,
        listened.ids[:lead] + words,
        slice(lead, lead + len(words)),
        slice(wording[0], wording[-1] + 1),
        question.strip(),
        len(told),
    )


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    plain: PlainTokenizer,
    prompt: str | Sequence[Mapping[str, Any]],
    structure: Structure,
) -> list[int]:
    """Token ids of a text to continue, or of messages to answer.

    The last question is told the schema of its answer, because a small model that does not know what is to come writes the
    first field without end.

    Args:
        tokenizer: the model's, with its chat template.
        plain: encodes text so that no part of it becomes a control token.
        prompt: the text, or the messages.
        structure: of the answer; messages tell it to the model.

    Raises:
        EmptyPromptError: there is nothing to continue.
        InvalidRequestError: it is neither a text nor a list of messages, or a text with tools.
    """
    if not isinstance(prompt, (str, list, tuple)):
        raise InvalidRequestError(f"a prompt is a str or a list of messages, got {type(prompt).__name__}")
    if not isinstance(prompt, str):
        ids = render_chat(tokenizer, plain, _told(prompt, structure.schema), structure.tools)
    elif structure.tools:
        raise InvalidRequestError("tools need messages, got a text: pass [{'role': 'user', 'content': …}]")
    else:
        ids = leading(tokenizer) + plain.encode(prompt).ids if prompt.strip() else []
    if not ids:
        raise EmptyPromptError("the prompt is empty: give a text or at least one message")
    return ids


def _told(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    last = messages[-1] if messages else None
    if schema is None or not isinstance(last, Mapping) or last.get("role") != "user":
        return messages
    told = f"{last.get('content')}\n\n{TELL_SCHEMA}{json.dumps(schema, ensure_ascii=False)}"
    return [*messages[:-1], {**last, "content": told}]


def leading(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The begin token, where the tokenizer puts one before every text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []


def _turns(history: Sequence[Turn]) -> Sequence[Turn]:
    """The history, if it is one."""
    turns: list[Any] = list(history) if isinstance(history, (list, tuple)) else [history]
    for turn in turns:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise InvalidRequestError(f"history is a list of (question, answer) pairs of str, got {turn!r}")
    return turns
