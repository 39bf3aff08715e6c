"""A framework's conversation as the engine's answer, also without blocking an event loop; knows no framework's types."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from reattention_core.answer import Answer, AnswerStream
from reattention_core.corpus import Corpus
from reattention_core.engine import Engine
from reattention_core.errors import AnswerTimeoutError, InvalidConfigError, InvalidRequestError
from reattention_core.prefill import Cancelled
from reattention_core.prompts import Turn

CAPACITY = 1_000_000
"""Tokens to announce to a framework before the weights are loaded; afterwards it is what memory holds.

Longer prompts than the model's window are read too. A framework told the window would cut them, and ask many times.
"""

CALL_SETTINGS = ("temperature", "top_p", "max_tokens", "stop", "seed", "repetition_penalty")
"""What one call may set; the models of all frameworks have fields of these names too."""

STRUCTURE = ("tools", "tool_choice", "parallel_tool_calls", "schema")
"""What an answer may be held to; see `Engine.generate`."""

Result = TypeVar("Result")

Message = dict[str, Any]
"""A message as `Engine.generate` takes it: {"role": …, "content": text}, and what belongs to calls of tools."""


def generation(own: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Generation` for one call; None stands for a setting left out.

    Args:
        own: a framework's model, whose attributes are the defaults.
        given: what the call says.

    Raises:
        InvalidConfigError: the call says something that would have no effect.
    """
    given = {name: value for name, value in given.items() if value is not None}
    unknown = ", ".join(sorted(set(given) - set(CALL_SETTINGS)))
    if unknown:
        raise InvalidConfigError(
            f"unknown argument of a call: {unknown} (allowed: {', '.join(CALL_SETTINGS)}); leave it out"
        )
    values = {**{name: getattr(own, name) for name in CALL_SETTINGS}, **given}
    values["max_new_tokens"] = values.pop("max_tokens")
    return {name: value for name, value in values.items() if value is not None}


def start(
    engine: Engine,
    corpus: Corpus | None,
    asked: str | Sequence[Message],
    settings: dict[str, Any],
    structure: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> AnswerStream:
    """Begin an answer: from the corpus to the last message, or without one to the whole conversation.

    Neighbouring messages of one role become one, because many chat templates insist on turns.

    Args:
        engine: answers.
        corpus: the documents to answer from, or None.
        asked: a text, which is continued (asked, with a corpus), or messages.
        settings: fields of `Generation`. Stop strings come on top of those that end every answer from a corpus.
        structure: what the answer is held to, by the names in STRUCTURE; a corpus knows no tools.
        limit: tokens of a prompt without a corpus, and its answer, at most.

    Raises:
        ContextTooLongError: there are more, or more than memory holds, or than the model's window beside a corpus.
        InvalidRequestError: the messages are no question to a corpus.
    """
    structure = {name: value for name, value in (structure or {}).items() if value is not None}
    if not isinstance(asked, str):
        asked = _merged(asked)
    if corpus is None:
        return engine.stream(asked, limit=limit, **settings, **structure)
    if structure.get("tools"):
        raise InvalidRequestError(
            "a question to a corpus calls no tools: leave out `corpus`, and give the corpus to the model as a tool"
        )
    settings = {**settings, "schema": structure.get("schema")}
    question, history, system = (asked, [], "") if isinstance(asked, str) else _question(asked)
    stop = settings.get("stop", ())
    stop = (*engine.config.stop, *((stop,) if isinstance(stop, str) else stop))
    return corpus.stream(question, history=history, system=system, **{**settings, "stop": stop})


def in_words_of(stream: AnswerStream, too_late: type[AnswerTimeoutError]) -> AnswerStream:
    """The same answer; where it takes too long, `too_late` is raised in place of the engine's own error."""

    def pieces() -> Iterator[str | Answer]:
        try:
            yield from stream
            yield stream.answer
        except AnswerTimeoutError as error:
            raise too_late(str(error)) from error
        finally:
            stream.close()

    return AnswerStream(pieces(), stream.cancel)


async def pulled(stream: AnswerStream) -> AsyncGenerator[str, None]:
    """The pieces of an answer, each awaited in a thread so that the event loop stays free.

    Closing it, or cancelling the task that awaits a piece, stops the model and returns once it has stopped.
    """
    pull: asyncio.Future[str | None] | None = None
    try:
        while True:
            pull = asyncio.ensure_future(asyncio.to_thread(next, stream, None))
            piece = await asyncio.shield(pull)
            if piece is None:
                return
            yield piece
    finally:
        stream.cancel()
        # A generator cannot be closed while a thread is in it.
        if pull is not None and not pull.done():
            await asyncio.gather(pull, return_exceptions=True)
        await asyncio.to_thread(stream.close)


async def afinish(stream: AnswerStream) -> Answer:
    """The whole answer, like `answer.finish`, without blocking the event loop; cancelling it stops the model."""
    async with aclosing(pulled(stream)) as pieces:
        async for _ in pieces:
            pass
    return stream.answer


async def stoppable(call: Callable[[Cancelled], Result]) -> Result:
    """What a call gives, run in a thread so that the event loop stays free; cancelling the task stops the model.

    Args:
        call: takes what says whether it shall stop, as `Corpus.find` and `Corpus.add` do.
    """
    stop = threading.Event()
    try:
        return await asyncio.to_thread(call, stop.is_set)
    finally:
        stop.set()


def _merged(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        plain = set(message) == {"role", "content"}
        if plain and merged and merged[-1].keys() == message.keys() and merged[-1]["role"] == message["role"]:
            merged[-1] = {**message, "content": f"{merged[-1]['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _question(messages: Sequence[Message]) -> tuple[str, list[Turn], str]:
    """The last message, the turns before it, and what system messages say."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    talk = _merged([message for message in messages if message["role"] != "system"])
    roles, texts = [message["role"] for message in talk], [message["content"] for message in talk]
    turns = len(talk) // 2
    if roles != [*("user", "assistant") * turns, "user"]:
        raise InvalidRequestError(
            f"a question to a corpus is a user message, with pairs of user and assistant before it; got {', '.join(roles)}"
        )
    return texts[-1], list(zip(texts[:-1:2], texts[1::2], strict=True)), system
