"""LlamaIndex messages as the engine's, and the engine's answers as LlamaIndex responses; knows no engine."""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from reattention_core import Answer, AnswerStream
from reattention_core.errors import InvalidRequestError
from reattention_core.frameworks.conversation import Message, pulled

ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}

NOT_READ = (CachePoint, CitationBlock, ThinkingBlock)
"""Blocks without anything to read: what to keep, what an earlier answer cited, and what was thought on the way to it."""

Response = TypeVar("Response", ChatResponse, CompletionResponse)

Make = Callable[[str, str | None, Answer | None], Response]
"""Makes a response of the text so far, the piece that is new in it and the answer, once it is whole."""


def plain(messages: Sequence[ChatMessage]) -> list[Message]:
    """Roles, texts and calls; the text blocks of a message are joined with a newline.

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
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    texts = [_text(block) for block in message.blocks if not isinstance(block, (ToolCallBlock, *NOT_READ))]
    made: Message = {"role": ROLES[message.role], "content": "\n".join(texts)}
    if made["role"] == "tool":
        made["tool_call_id"] = message.additional_kwargs.get("tool_call_id")
    if calls:
        made["tool_calls"] = [
            {"id": call.tool_call_id, "function": {"name": call.tool_name, "arguments": call.tool_kwargs}}
            for call in calls
        ]
    return made


def _text(block: ContentBlock) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, CitableBlock):
        return "\n".join([block.title, *(_text(part) for part in block.content)])
    raise InvalidRequestError(
        f"{type(block).__name__} in a message is not supported (allowed: TextBlock): this model reads text only"
    )


def chat_response(text: str, delta: str | None = None, answer: Answer | None = None) -> ChatResponse:
    """A response to `chat`."""
    calls = [] if answer is None else answer.tool_calls
    blocks: list[ContentBlock] = [TextBlock(text=text)]
    blocks += [ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in calls]
    return _message(blocks, delta, answer)


def cited_response(text: str, delta: str | None = None, answer: Answer | None = None) -> ChatResponse:
    """A response to `chat` whose message holds a citation for every passage that was read."""
    sources = [] if answer is None else answer.sources
    blocks: list[ContentBlock] = [TextBlock(text=text)]
    blocks += [
        CitationBlock(
            cited_content=TextBlock(text=source.quote),
            source=source.source or source.document_id,
            title=source.title,
            # The framework's type has room for whole numbers only; the scores are in `raw`.
            additional_location_info={"start": source.start, "end": source.end},
        )
        for source in sources
    ]
    return _message(blocks, delta, answer)


def _message(blocks: list[ContentBlock], delta: str | None, answer: Answer | None) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), delta=delta, raw=_raw(answer))


def completion_response(text: str, delta: str | None = None, answer: Answer | None = None) -> CompletionResponse:
    """A response to `complete`."""
    return CompletionResponse(text=text, delta=delta, raw=_raw(answer))


def whole(answer: Answer, make: Make[Response]) -> Response:
    """The response of a finished answer."""
    return make(answer.text, None, answer)


def chunks(stream: AnswerStream, make: Make[Response]) -> Generator[Response, None, None]:
    """A response for every piece, and a last one without new text that has `raw`."""
    text = ""
    try:
        for piece in stream:
            text += piece
            yield make(text, piece, None)
    finally:
        stream.close()
    yield make(text, "", stream.answer)


async def achunks(stream: AnswerStream, make: Make[Response]) -> AsyncGenerator[Response, None]:
    """Like `chunks`, without blocking the event loop."""
    text = ""
    async with aclosing(pulled(stream)) as pieces:
        async for piece in pieces:
            text += piece
            yield make(text, piece, None)
    yield make(text, "", stream.answer)


def _raw(answer: Answer | None) -> dict[str, Any] | None:
    """What else is known; the framework's token counter reads `usage`, in which a prompt includes what was cached."""
    if answer is None:
        return None
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
