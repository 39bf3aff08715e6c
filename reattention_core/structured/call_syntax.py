"""How a model writes a tool call: as its own chat template writes one, or in a form of ours; knows no grammar.

The template is asked, not the model's name: it is given a conversation with one call and one with two, and what it writes
around the names and the arguments is the syntax. A template that writes a call in pieces, or ignores tools, has none that
can be used; then tools are described in the first message and calls are written as `GENERIC` says.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reattention_core.structured.tools import Tool, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALL_ID = "call00000"
"""Stands for every id in a prompt's first call; ids tell calls apart, so that what they are does not matter."""

_TELL = """You can call tools. They are, as JSON:
{tools}
To call a tool, write nothing but
{call}"""


@dataclass(frozen=True)
class CallSyntax:
    r"""What stands around the names and arguments of calls.

    Attributes:
        head: before the first name, for example `<tool_call>\n{"name": "`.
        middle: between a name and its arguments.
        between: between arguments and the next name; None where only one call can be made at a time.
        tail: after the last arguments.
        native: whether it is the chat template's.
        keeps_text: whether text may stand before the calls.
    """

    head: str
    middle: str
    between: str | None
    tail: str
    native: bool
    keeps_text: bool

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as the model writes them."""
        written = [f"{call.name}{self.middle}{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls]
        return self.head + (self.between or "").join(written) + self.tail

    def read(self, text: str) -> list[ToolCall]:
        """The calls in what `write` would have written."""
        calls, text = [], text.removeprefix(self.head)
        while text:
            name, _, text = text.partition(self.middle)
            arguments, end = json.JSONDecoder().raw_decode(text)
            calls.append(ToolCall(name=name, arguments=arguments))
            text = text[end:]
            if self.between is None or not text.startswith(self.between):
                break
            text = text.removeprefix(self.between)
        return calls

    def tell(self, tools: Sequence[Tool]) -> str:
        """Instructions for a model whose chat template has no place for tools."""
        listed = "\n".join(json.dumps(tool.model_dump(), ensure_ascii=False) for tool in tools)
        call = f"{self.head}<name>{self.middle}<arguments as JSON>{self.tail}"
        return _TELL.format(tools=listed, call=call)


GENERIC = CallSyntax(
    head='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    tail="}\n</tool_call>",
    native=False,
    keeps_text=True,
)
"""The form that most models with tools were trained on."""


def call_syntax(tokenizer: "PreTrainedTokenizerBase") -> CallSyntax:
    """The syntax of the tokenizer's chat template, or `GENERIC`."""
    return _native(tokenizer) or GENERIC


def _native(tokenizer: "PreTrainedTokenizerBase") -> CallSyntax | None:
    name, other, key, words = (f"x{secrets.token_hex(8)}" for _ in range(4))
    arguments = json.dumps({key: 0})

    def rendered(*messages: Mapping[str, Any], **options: Any) -> str:
        options |= {"tools": [Tool(name=name, description="a").as_function()], "tokenize": False}
        conversation: list[Any] = [{"role": "user", "content": "a"}, *messages]
        return str(tokenizer.apply_chat_template(conversation, **options))

    def made(*names: str, content: str = "") -> dict[str, Any]:
        calls = [{"id": CALL_ID, "type": "function", "function": {"name": n, "arguments": {key: 0}}} for n in names]
        return {"role": "assistant", "content": content, "tool_calls": calls}

    def answered(message: Mapping[str, Any]) -> str:
        whole = rendered(message)
        # An empty thought, which some templates write into the newest answer, is no part of a call.
        return re.sub(r"^<think>\s*</think>\s*", "", whole.removeprefix(asked)) if whole.startswith(asked) else ""

    if not tokenizer.chat_template:
        return None
    try:
        asked = rendered(add_generation_prompt=True)
        head, _, rest = answered(made(name)).partition(name)
        result = {"role": "tool", "name": name, "tool_call_id": CALL_ID, "content": words}
        shows = name in asked and words in rendered(made(name), result)
    except Exception:
        # A template is a program of somebody else: one that fails in any way on tools has no place for them.
        return None
    middle, found, tail = rest.partition(arguments)
    if not (shows and found and head.strip()):
        return None
    ends = "|".join(re.escape(token) for token in tokenizer.all_special_tokens)
    try:
        two = answered(made(name, other))
    except Exception:
        two = ""
    between = two.removeprefix(head + name + middle + arguments).partition(other)[0] if other in two else None
    if between is not None and not two.startswith(
        f"{head}{name}{middle}{arguments}{between}{other}{middle}{arguments}"
    ):
        between = None
    try:
        keeps_text = words in answered(made(name, content=words))
    except Exception:
        keeps_text = False
    return CallSyntax(head, middle, between, re.split(ends, tail)[0].rstrip("\n"), True, keeps_text)
