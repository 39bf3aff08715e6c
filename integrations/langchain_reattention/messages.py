"""LangChain messages as the engine's, and the engine's answers as LangChain messages; knows no engine."""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call, tool_call_chunk

from reattention_core import Answer
from reattention_core.errors import InvalidRequestError
from reattention_core.frameworks.conversation import Message

PROVIDER = "reattention"

_SAID_ELSEWHERE = ("tool_use", "tool_call", "thinking", "reasoning")
"""Blocks of an answer that are left out: calls stand in `tool_calls`, and earlier thoughts are not read again."""


def plain(messages: Sequence[BaseMessage]) -> list[Message]:
    """Roles, texts and calls; the text blocks of a message are joined.

    Raises:
        InvalidRequestError: a message is of a kind, or holds a block, that the engine cannot read.
    """
    return [_plain(message) for message in messages]


def _plain(message: BaseMessage) -> Message:
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": _text(message)}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": _text(message)}
    if isinstance(message, ToolMessage):
        return {"role": "tool", "content": _text(message), "tool_call_id": message.tool_call_id}
    if isinstance(message, AIMessage):
        made: Message = {"role": "assistant", "content": _text(message, _SAID_ELSEWHERE)}
        calls = [
            {"id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
        return {**made, "tool_calls": calls} if calls else made
    raise InvalidRequestError(
        f"{type(message).__name__} is not supported (allowed: SystemMessage, HumanMessage, AIMessage, ToolMessage)"
    )


def _text(message: BaseMessage, left_out: Sequence[str] = ()) -> str:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    texts = []
    for block in blocks:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        elif block.get("type") not in left_out:
            raise InvalidRequestError(
                f"a block of type {block.get('type')!r} in a message is not supported (allowed: 'text'): this model reads "
                "text only"
            )
    return "".join(texts)


def about(answer: Answer, model: str, with_sources: bool) -> dict[str, Any]:
    """The fields of a message besides its text and calls: usage, in which the input includes what was cached, and metadata."""
    usage = answer.usage
    read = usage.prompt_tokens + usage.cached_tokens
    metadata = {"model_name": model, "model_provider": PROVIDER, "finish_reason": answer.finish_reason}
    sources = {"sources": [source.model_dump() for source in answer.sources]} if with_sources else {}
    return {
        "usage_metadata": UsageMetadata(
            input_tokens=read,
            output_tokens=usage.completion_tokens,
            total_tokens=read + usage.completion_tokens,
            # What is kept of a prompt for later calls costs nothing more, and is not counted.
            input_token_details=InputTokenDetails(cache_read=usage.cached_tokens, cache_creation=0),
        ),
        "response_metadata": {**metadata, **sources},
    }


def whole(answer: Answer, model: str, with_sources: bool) -> AIMessage:
    """The message of an answer."""
    calls = [tool_call(name=call.name, args=call.arguments, id=call.id) for call in answer.tool_calls]
    return AIMessage(content=answer.text, tool_calls=calls, **about(answer, model, with_sources))


def call_chunks(answer: Answer) -> list[ToolCallChunk]:
    """The calls of an answer, each in one chunk: they are given out when they are whole."""
    return [
        tool_call_chunk(name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=index)
        for index, call in enumerate(answer.tool_calls)
    ]
