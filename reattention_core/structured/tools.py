"""What tools a model may call and what calls came of it; knows no syntax, no grammar and no model."""

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reattention_core.config import checked
from reattention_core.errors import InvalidConfigError

NAME = r"[A-Za-z0-9_.-]{1,128}"
"""What a tool may be called: nothing that a chat template or a JSON string would have to escape."""


class Tool(BaseModel):
    """A function that the model may ask for.

    Attributes:
        name: letters, digits, `_`, `.` and `-`.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=f"^{NAME}$")
    description: str = ""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}

    def as_function(self) -> dict[str, Any]:
        """The form that chat templates are written for."""
        return {"type": "function", "function": self.model_dump()}


class ToolCall(BaseModel):
    """A call that the model asks for.

    Attributes:
        id: tells it apart from other calls; nine letters and digits, because some chat templates accept nothing else.
        name: of the tool.
        arguments: they follow the tool's schema.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: secrets.token_hex(5)[:9])
    name: str
    arguments: dict[str, Any]


def read_tools(tools: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools in the form in which most programs hand them over.

    Args:
        tools: `{"type": "function", "function": {"name", "description", "parameters"}}` each.

    Raises:
        InvalidConfigError: one has another form, or two share a name.
    """
    read = tuple(_read(index, tool) for index, tool in enumerate(tools))
    names = [tool.name for tool in read]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidConfigError(f"several tools are named {', '.join(twice)}: give each its own name")
    return read


def _read(index: int, tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidConfigError(
            f"tools[{index}] is {tool!r}; a tool is {{'type': 'function', 'function': {{'name': …, 'description': …, "
            "'parameters': a JSON schema}}}"
        )
    # A schema is always followed to the letter, so what others ask for with `strict` is already given.
    given = {key: value for key, value in function.items() if key != "strict" and value is not None}
    made = checked(Tool, given)
    if made.parameters.get("type", "object") != "object":
        raise InvalidConfigError(
            f"tools[{index}]: the parameters of a tool are an object, got {made.parameters['type']!r}"
        )
    return made


def read_call(index: int, call: Mapping[str, Any]) -> ToolCall:
    """A call in an earlier message, in the form in which most programs hand it over.

    Args:
        index: of the message, for the error.
        call: `{"id", "type": "function", "function": {"name", "arguments"}}`, arguments as an object or as its JSON.

    Raises:
        InvalidConfigError: it has another form.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(arguments, dict) or not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise InvalidConfigError(
            f"a tool call of messages[{index}] is {call!r}; it is {{'id': …, 'function': {{'name': …, 'arguments': an "
            "object or its JSON}}}"
        )
    return ToolCall(id=str(call.get("id") or ""), name=name, arguments=arguments)
