"""LlamaIndex messages as the engine's, and the engine's answers as LlamaIndex responses; knows no engine."""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, TextBlock

from reattention_core import Answer, AnswerStream
from reattention_core.conversation import Message, pulled
from reattention_core.errors import InvalidRequestError

ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}

Response = TypeVar("Response", ChatResponse, CompletionResponse)

Make = Callable[[str, str | None, dict[str, Any] | None], Response]
"""Makes a response of the text so far, the piece that is new in it and `raw`."""


def plain(messages: Sequence[ChatMessage]) -> list[Message]:
    """Roles and texts; the text blocks of a message are joined with a newline.

    Raises:
        InvalidRequestError: a message has a role or a block that the engine cannot read.
    """
    return [_plain(message) for message in messages]


def _plain(message: ChatMessage) -> Message:
    if message.role not in ROLES:
        allowed = ", ".join(role.value for role in ROLES)
        raise InvalidRequestError(
            f"messages of the role {message.role.value!r} are not supported (allowed: {allowed}): leave them out"
        )
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise InvalidRequestError(
                f"{type(block).__name__} in a message is not supported (allowed: TextBlock): this model reads text only"
            )
    return {"role": ROLES[message.role], "content": message.content or ""}


def chat_response(text: str, delta: str | None = None, raw: dict[str, Any] | None = None) -> ChatResponse:
    """A response to `chat`."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta, raw=raw)


def completion_response(text: str, delta: str | None = None, raw: dict[str, Any] | None = None) -> CompletionResponse:
    """A response to `complete`."""
    return CompletionResponse(text=text, delta=delta, raw=raw)


def whole(answer: Answer, make: Make[Response]) -> Response:
    """The response of a finished answer."""
    return make(answer.text, None, _raw(answer))


def chunks(stream: AnswerStream, make: Make[Response]) -> Generator[Response, None, None]:
    """A response for every piece, and a last one without new text that has `raw`."""
    text = ""
    try:
        for piece in stream:
            text += piece
            yield make(text, piece, None)
    finally:
        stream.close()
    yield make(text, "", _raw(stream.answer))


async def achunks(stream: AnswerStream, make: Make[Response]) -> AsyncGenerator[Response, None]:
    """Like `chunks`, without blocking the event loop."""
    text = ""
    async with aclosing(pulled(stream)) as pieces:
        async for piece in pieces:
            text += piece
            yield make(text, piece, None)
    yield make(text, "", _raw(stream.answer))


def _raw(answer: Answer) -> dict[str, Any]:
    """What else is known; the framework's token counter reads `usage`, in which a prompt includes what was cached."""
    usage = answer.usage
    prompt = usage.prompt_tokens + usage.cached_tokens
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": prompt + usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "finish_reason": answer.finish_reason,
        "sources": [source.model_dump() for source in answer.sources],
    }
