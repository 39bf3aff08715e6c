"""LangChain messages as the engine's, and the engine's answers as LangChain messages; knows no engine."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from reattention_core import Answer
from reattention_core.conversation import Message
from reattention_core.errors import InvalidRequestError


def plain(messages: Sequence[BaseMessage]) -> list[Message]:
    """Roles and texts; the text blocks of a message are joined.

    Raises:
        InvalidRequestError: a message is of a kind, or holds a block, that the engine cannot read.
    """
    return [{"role": _role(message), "content": _text(message)} for message in messages]


def _role(message: BaseMessage) -> str:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage) and not message.tool_calls:
        return "assistant"
    got = f"{type(message).__name__}{' with tool calls' if isinstance(message, AIMessage) else ''}"
    raise InvalidRequestError(
        f"{got} is not supported (allowed: SystemMessage, HumanMessage, AIMessage): this model does not call tools yet"
    )


def _text(message: BaseMessage) -> str:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    texts = []
    for block in blocks:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        else:
            raise InvalidRequestError(
                f"a block of type {block.get('type')!r} in a message is not supported (allowed: 'text'): this model reads "
                "text only"
            )
    return "".join(texts)


def about(answer: Answer, model: str, with_sources: bool) -> dict[str, Any]:
    """The fields of a message besides its text: usage, in which the input includes what was cached, and metadata."""
    usage = answer.usage
    read = usage.prompt_tokens + usage.cached_tokens
    metadata = {"model_name": model, "model_provider": "reattention", "finish_reason": answer.finish_reason}
    sources = {"sources": [source.model_dump() for source in answer.sources]} if with_sources else {}
    return {
        "usage_metadata": UsageMetadata(
            input_tokens=read,
            output_tokens=usage.completion_tokens,
            total_tokens=read + usage.completion_tokens,
            input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
        ),
        "response_metadata": {**metadata, **sources},
    }
