"""Turns chat messages into ids through the tokenizer's chat template; knows no model or cache.

Only what the template itself writes may become a control token. So the template is rendered with
a random stand-in for every content, its own text is encoded with its markers, and the contents
are encoded as plain text and put where their stand-ins were.

What follows from it: the template never sees a content, so it cannot act on one (some drop the
`<think>` part of earlier answers; leave that out of the messages yourself), and each content is
encoded on its own, so its first token can differ from that of the whole string.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reattention_core.errors import EmptyPromptError, InvalidRequestError, UnsupportedModelError
from reattention_core.tokens import PlainTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")

# White space that no template writes itself: it is gone where a template strips its contents.
_EDGE = "\u2003"


def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    plain: PlainTokenizer,
    messages: Sequence[Mapping[str, str]],
) -> list[int]:
    """Encodes messages up to where the assistant's answer begins.

    A tokenizer without a chat template gives the contents joined with a blank line, without
    roles: markers that the model was not trained on would be noise.

    Args:
        tokenizer: Encodes what the template writes.
        plain: Encodes the contents.
        messages: `{"role": ..., "content": ...}`, in order; roles are those of ROLES.

    Returns:
        Token ids, with a begin-of-text token only if the template writes one.

    Raises:
        EmptyPromptError: There is no message, or none with any text.
        InvalidRequestError: A message is malformed, or the template refuses the conversation.
        UnsupportedModelError: The template drops, repeats or transforms a content.
    """
    contents = [_check_message(index, message) for index, message in enumerate(messages)]
    if not any(content.strip() for content in contents):
        raise EmptyPromptError(f"no message of {len(contents)} has any text; pass a question")
    if not tokenizer.chat_template:
        return plain.encode("\n\n".join(contents)).ids
    # Quotes and brackets show a template that escapes; two cases show one that changes the case.
    stand_ins = [f'aB"\\<&{secrets.token_hex(16)}' for _ in contents]
    rendered = _render(tokenizer, [message["role"] for message in messages], stand_ins)
    parts = re.split(f"({'|'.join(map(re.escape, stand_ins))})", rendered)
    written, found = parts[::2], parts[1::2]
    if sorted(found) != sorted(stand_ins):
        raise UnsupportedModelError(
            "the chat template drops, repeats or transforms the content of a message"
            f" ({len(stand_ins)} passed, {len(found)} came back), so that content cannot be told"
            " from markers; set tokenizer.chat_template to one that writes every content once"
        )
    ids = _encode_written(tokenizer, written[0])
    for stand_in, before, after in zip(found, written, written[1:], strict=False):
        content = contents[stand_ins.index(stand_in)]
        content = content if before.endswith(_EDGE) else content.lstrip()
        content = content if after.startswith(_EDGE) else content.rstrip()
        ids += plain.encode(content).ids + _encode_written(tokenizer, after)
    plain.check_rows(ids)
    return ids


def _check_message(index: int, message: Mapping[str, str]) -> str:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        got = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise InvalidRequestError(f"messages[{index}] has {got}; a message is a dict of exactly 'role' and 'content'")
    if message["role"] not in ROLES:
        raise InvalidRequestError(f"messages[{index}] has the role {message['role']!r}; allowed are {', '.join(ROLES)}")
    if not isinstance(message["content"], str):
        got = type(message["content"]).__name__
        raise InvalidRequestError(f"the content of messages[{index}] is {got}; it must be a str")
    return message["content"]


def _render(tokenizer: "PreTrainedTokenizerBase", roles: list[str], stand_ins: list[str]) -> str:
    from jinja2 import TemplateError

    conversation = [
        {"role": role, "content": f"{_EDGE}{stand_in}{_EDGE}"} for role, stand_in in zip(roles, stand_ins, strict=True)
    ]
    try:
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidRequestError(f"the model's chat template refuses roles {', '.join(roles)}: {error}") from error
    return str(rendered)


def _encode_written(tokenizer: "PreTrainedTokenizerBase", written: str) -> list[int]:
    ids: list[int] = tokenizer.encode(written.strip(_EDGE), add_special_tokens=False)
    return ids
