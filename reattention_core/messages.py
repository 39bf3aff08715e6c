"""Messages of a conversation as they come in, checked; knows no tokenizer and no template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reattention_core.errors import InvalidRequestError
from reattention_core.structured.call_syntax import CallSyntax
from reattention_core.structured.tools import Tool, ToolCall, read_call

ROLES = ("system", "user", "assistant", "tool")

_MAY_HAVE = {"assistant": {"tool_calls"}, "tool": {"tool_call_id", "name"}}


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        role: one of ROLES.
        content: its text; of a tool's message, the result.
        calls: that the assistant made.
        name: of the tool whose result it is.
    """

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    name: str = ""


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checks messages in the form in which most programs hand them over.

    Args:
        messages: `{"role", "content"}` each; an assistant's may have `tool_calls`, and a tool's has the `tool_call_id` of the
            call that it answers (without one, it answers the oldest call that has no answer).

    Raises:
        InvalidRequestError: one is malformed, or a result belongs to no call.
    """
    read: list[Message] = []
    waiting: dict[str, str] = {}
    for index, message in enumerate(messages):
        made = _read(index, message)
        if made.role == "tool":
            made = replace(made, name=_answered(index, message, waiting))
        for call in made.calls:
            waiting[call.id or f"{index} {len(waiting)}"] = call.name
        read.append(made)
    return read


def _read(index: int, message: Mapping[str, Any]) -> Message:
    allowed = {"role", "content"} | _MAY_HAVE.get(
        message.get("role", "") if isinstance(message, Mapping) else "", set()
    )
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message) <= allowed:
        got = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise InvalidRequestError(
            f"messages[{index}] has {got}; a message is a dict of 'role' and 'content' (an assistant's may have 'tool_calls', a "
            "tool's 'tool_call_id' and 'name')"
        )
    if message["role"] not in ROLES:
        raise InvalidRequestError(f"messages[{index}] has the role {message['role']!r}; allowed are {', '.join(ROLES)}")
    calls = tuple(read_call(index, call) for call in message.get("tool_calls") or ())
    content = "" if calls and message["content"] is None else message["content"]
    if not isinstance(content, str):
        raise InvalidRequestError(f"the content of messages[{index}] is {type(content).__name__}; it must be a str")
    return Message(message["role"], content, calls)


def _answered(index: int, message: Mapping[str, Any], waiting: dict[str, str]) -> str:
    """The name of the tool whose call a result answers."""
    asked = message.get("tool_call_id") or next(iter(waiting), None)
    if asked not in waiting:
        raise InvalidRequestError(
            f"messages[{index}] is the result of a tool, but no call before it waits for the id {asked!r} (waiting: "
            f"{', '.join(waiting) or 'none'}): put the assistant's message with the call before it"
        )
    return waiting.pop(asked)


def without_calls(messages: Sequence[Message], tools: Sequence[Tool], syntax: CallSyntax) -> list[Message]:
    """The same conversation for a template that knows no tools: calls are texts, and results are the user's.

    Neighbouring messages of the user become one, because many templates insist on turns.

    Args:
        messages: of the conversation.
        tools: told in the first message.
        syntax: in which calls are written.
    """
    made: list[Message] = []
    for message in messages:
        content, role = message.content, message.role
        if message.calls:
            content = "\n".join(filter(None, [content, syntax.write(message.calls)]))
        if role == "tool":
            content, role = f"<tool_response>\n{content}\n</tool_response>", "user"
        if role == "user" and made and made[-1].role == "user":
            made[-1] = Message(role, f"{made[-1].content}\n\n{content}")
        else:
            made.append(Message(role, content))
    if tools:
        made[0] = replace(made[0], content=f"{syntax.tell(tools)}\n\n{made[0].content}")
    return made


def with_calls_apart(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template that writes either the text or the calls of a message: both, one by one."""
    made: list[Message] = []
    for message in messages:
        if message.calls and message.content:
            made.append(replace(message, calls=()))
        made.append(replace(message, content="") if message.calls else message)
    return made
