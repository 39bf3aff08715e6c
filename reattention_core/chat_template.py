"""Turns chat messages into ids through the tokenizer's chat template; knows no model or cache.

Only what the template itself writes may become a control token. So the template is rendered with
a random stand-in for every content, its own text is encoded with its markers, and the contents
are encoded as plain text and put where their stand-ins were. Arguments of tool calls are contents too.

What follows from it: the template never sees a content, so it cannot act on one (some drop the
`<think>` part of earlier answers; leave that out of the messages yourself), and each content is
encoded on its own, so its first token can differ from that of the whole string.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reattention_core.errors import EmptyPromptError, InvalidRequestError, UnsupportedModelError
from reattention_core.messages import Message, read_messages, with_calls_apart, without_calls
from reattention_core.structured.call_syntax import CALL_ID, call_syntax
from reattention_core.structured.tools import Tool
from reattention_core.tokens import PlainTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# White space that no template writes itself: it is gone where a template strips its contents.
_EDGE = "\u2003"


def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    plain: PlainTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Encodes messages up to where the assistant's answer begins.

    A tokenizer without a chat template gives the contents joined with a blank line, without
    roles: markers that the model was not trained on would be noise.

    Args:
        tokenizer: Encodes what the template writes.
        plain: Encodes the contents.
        messages: `{"role": ..., "content": ...}`, in order, as `read_messages` takes them.
        tools: Told to the model by its template, or in the first message where that has no place for them.

    Returns:
        Token ids, with a begin-of-text token only if the template writes one.

    Raises:
        EmptyPromptError: There is no message, or none with any text.
        InvalidRequestError: A message is malformed, or the template refuses the conversation.
        UnsupportedModelError: The template drops, repeats or transforms a content.
    """
    read = read_messages(messages)
    if not any(message.content.strip() for message in read):
        raise EmptyPromptError(f"no message of {len(read)} has any text; pass a question")
    if tools or any(message.calls or message.role == "tool" for message in read):
        syntax = call_syntax(tokenizer)
        if not syntax.native:
            read, tools = without_calls(read, tools, syntax), ()
        elif not syntax.keeps_text:
            read = with_calls_apart(read)
    if not tokenizer.chat_template:
        return plain.encode("\n\n".join(message.content for message in read)).ids
    _check_tools(tokenizer, plain, tools)
    conversation, contents = _with_stand_ins(read)
    rendered = _render(tokenizer, conversation, tools)
    parts = re.split(f"({'|'.join(map(re.escape, contents))})", rendered)
    written, found = parts[::2], parts[1::2]
    if sorted(found) != sorted(contents):
        raise UnsupportedModelError(
            "the chat template drops, repeats or transforms the content of a message"
            f" ({len(contents)} passed, {len(found)} came back), so that content cannot be told"
            " from markers; set tokenizer.chat_template to one that writes every content once"
        )
    ids = _encode_written(tokenizer, written[0])
    for stand_in, before, after in zip(found, written, written[1:], strict=False):
        content = contents[stand_in]
        content = content if before.endswith(_EDGE) else content.lstrip()
        content = content if after.startswith(_EDGE) else content.rstrip()
        ids += plain.encode(content).ids + _encode_written(tokenizer, after)
    plain.check_rows(ids)
    return ids


def _with_stand_ins(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The conversation for the template, and what its stand-ins stand for."""
    conversation: list[dict[str, Any]] = []
    contents: dict[str, str] = {}
    for message in messages:
        # Quotes and brackets show a template that escapes; two cases show one that changes the case.
        stand_in = f'aB"\\<&{secrets.token_hex(16)}'
        made: dict[str, Any] = {"role": message.role, "content": ""}
        # Beside calls an empty content is often left out, with what would stand around it.
        if message.content or not message.calls:
            contents[stand_in] = message.content
            made["content"] = f"{_EDGE}{stand_in}{_EDGE}"
        if message.role == "tool":
            made |= {"name": message.name, "tool_call_id": CALL_ID}
        for call in message.calls:
            key = secrets.token_hex(16)
            contents[json.dumps({key: 0})] = json.dumps(call.arguments, ensure_ascii=False)
            function = {"name": call.name, "arguments": {key: 0}}
            made.setdefault("tool_calls", []).append({"id": CALL_ID, "type": "function", "function": function})
        conversation.append(made)
    return conversation, contents


def _check_tools(tokenizer: "PreTrainedTokenizerBase", plain: PlainTokenizer, tools: Sequence[Tool]) -> None:
    """The template writes tools itself, so that what they say could become a control token."""
    texts = {json.dumps(tool.as_function(), ensure_ascii=False): tool.name for tool in tools}
    for index in plain.control_ids:
        token = str(tokenizer.convert_ids_to_tokens(index))
        for text, name in texts.items():
            if token in text:
                raise InvalidRequestError(f"the tool {name!r} says {token!r}, a control token of this model: remove it")


def _render(tokenizer: "PreTrainedTokenizerBase", conversation: list[dict[str, Any]], tools: Sequence[Tool]) -> str:
    from jinja2 import TemplateError

    options: dict[str, Any] = {"tools": [tool.as_function() for tool in tools]} if tools else {}
    try:
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise InvalidRequestError(f"the model's chat template refuses roles {roles}: {error}") from error
    return str(rendered)


def _encode_written(tokenizer: "PreTrainedTokenizerBase", written: str) -> list[int]:
    ids: list[int] = tokenizer.encode(written.strip(_EDGE), add_special_tokens=False)
    return ids
