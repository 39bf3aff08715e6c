"""What an answer may be, as a grammar that llguidance understands: text, tool calls, JSON of a schema; knows no model.

An answer is text or calls (text may stand before them), or JSON of a schema or calls where both are asked for.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from reattention_core.errors import InvalidConfigError
from reattention_core.structured.call_syntax import CallSyntax
from reattention_core.structured.tools import Tool

MOST_CALLS = 16
"""Calls in one answer at most, because a weak model may never stop making them."""

# As Python's json.dumps and chat templates write it, and no more white space than that: weak models fill pages with it.
_FORMAT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_COMBINED = ("allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "unevaluatedProperties", "$ref")


def closed(schema: Any) -> Any:
    """The schema, in which an object with named properties has no others.

    JSON Schema allows any others unless told not to, which nobody means and on which a weak model never ends. What follows
    the closed schema follows the open one too. Objects that are combined with other schemas are left open.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "dependentSchemas") and isinstance(value, Mapping):
            made[key] = {name: closed(part) for name, part in value.items()}
        elif key in ("items", "prefixItems", "anyOf", "oneOf", "additionalProperties"):
            made[key] = closed(value)
        else:
            made[key] = value
    if "properties" in schema and "additionalProperties" not in schema and not any(key in schema for key in _COMBINED):
        made["additionalProperties"] = False
    return made


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The right side of a rule for JSON of a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": _FORMAT})


def answer_grammar(
    schema: Mapping[str, Any] | None,
    tools: tuple[Tool, ...],
    choice: str,
    parallel: bool,
    syntax: CallSyntax,
    literal: Callable[[str], str],
) -> str:
    """The grammar of a whole answer.

    Args:
        schema: of what the model says when it calls nothing; None for text.
        tools: that may be called.
        choice: "auto", "required", "none" or the name of the tool to call.
        parallel: whether there may be several calls.
        syntax: of the calls.
        literal: text as the grammar's terms, with control tokens as such.

    Raises:
        InvalidConfigError: `choice` is no tool's name.
    """
    said = json_grammar(schema) if schema is not None else "TEXT"
    inside = f"(?s:.*){_escaped(syntax.head)}"
    text = f"TEXT: /(?s:.*)/ & ~/{inside}(?s:.*)/\n"
    if not tools or choice == "none":
        rules = f"start: said\nsaid: {said}\n"
        return rules + (text if schema is None else "")
    chosen = tools if choice in ("auto", "required") else tuple(tool for tool in tools if tool.name == choice)
    if not chosen:
        names = ", ".join(tool.name for tool in tools)
        raise InvalidConfigError(
            f"tool_choice {choice!r} is no tool (there are: {names}; or use 'auto', 'required', 'none')"
        )
    more = MOST_CALLS - 1 if parallel and syntax.between is not None and choice in ("auto", "required") else 0
    again = f"({literal(syntax.between or '')} call){{0,{more}}}" if more else ""
    rules = f"calls: call {again} {literal(syntax.tail)}\ncall: {' | '.join(f'call{i}' for i in range(len(chosen)))}\n"
    for i, tool in enumerate(chosen):
        rules += f"call{i}: {literal(tool.name + syntax.middle)} arguments{i}\n"
        rules += f"arguments{i}: {json_grammar({'type': 'object', **tool.parameters})}\n"
    if choice != "auto":
        return f"start: {literal(syntax.head)} calls\n{rules}"
    if schema is not None or not syntax.keeps_text:
        start = f"start: said | {literal(syntax.head)} calls\nsaid: {said}\n"
        return start + rules + (text if schema is None else "")
    if "<[" in literal(syntax.head):
        return f"start: said | said? {literal(syntax.head)} calls\nsaid: TEXT\n{rules}{text}"
    # Where plain text begins the calls, the first place in which it stands must end the text before them.
    return f"start: said | lead calls\nlead[lazy]: /{inside}/\nsaid: TEXT\n{rules}{text}"


def _escaped(text: str) -> str:
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)
