r"""Finds the question in a prompt that a framework stuffed with documents; knows no model and no tokens.

The rule. The longest content is where the documents are.
1. It is not the last user message: that message is the question.
2. It is: the question stands after the documents. Its part of the prompt is what follows the last line that only separates
   (`-----`, `=====`, `</context>`) in the last 4,000 characters; without one, the last paragraph. A line such as "Answer:" asks
   nothing. Within this part the question begins at the last line that names one ("Query: …", "Question: …"), or with the last
   paragraph.
3. Nothing there names a question, the prompt ends with a line such as "Answer:", and before the documents a line names one:
   it is that.
The first paragraph of the content, and the last one if it is not the question's, are instructions as long as they are short;
they stay where they are. What remains is the documents. A text that is no message, and has none of a named question, a question
mark and a line such as "Answer:", is one to continue: nothing is asked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

NEAR = 4000
"""Characters at either end of a content in which instructions and questions are looked for."""

SHORT = 1000
"""Characters of a paragraph that is taken for an instruction, at most."""

_SEPARATES = re.compile(r"^[ \t]*(?:([-=_*#~\"'`.])\1{2,}\w*|</?[\w-]+>)[ \t]*$", re.M)
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_NAMES = re.compile(
    r"^[ \t>#*]*(?:user |the |new |follow[- ]?up )?(?:question|query|input|user|human|task)[ \t*]*:[ \t*]*", re.I | re.M
)
_CUE = re.compile(r"(?:^|\n)[^\n:]{0,40}:[ \t\"'*]*$")


@dataclass(frozen=True)
class Stuffed:
    """A prompt taken apart.

    Attributes:
        prompt: as it came: a text or messages.
        place: which message holds the documents; None of a text.
        start: first character of the documents in that content.
        end: character after their last.
        question: what is asked.
    """

    prompt: str | Sequence[Message]
    place: int | None
    start: int
    end: int
    question: str

    @property
    def content(self) -> str:
        """The text or the message in which the documents stand."""
        return _content(self.prompt, self.place)

    @property
    def documents(self) -> str:
        """The documents."""
        return self.content[self.start : self.end]

    def with_documents(self, documents: str) -> str | list[Message]:
        """The prompt with other documents in their place."""
        content = self.content[: self.start] + documents + self.content[self.end :]
        if self.place is None:
            return content
        messages = [*self.prompt]
        messages[self.place] = {**messages[self.place], "content": content}
        return messages


def take_apart(prompt: str | Sequence[Message]) -> Stuffed | None:
    """What is asked of which documents; None where the rule finds no question or nothing to ask it of."""
    if isinstance(prompt, str):
        return _asked_inside(prompt, None, prompt)
    lengths = [len(_content(prompt, place)) for place in range(len(prompt))]
    if not lengths:
        return None
    place = lengths.index(max(lengths))
    asking = max((i for i, message in enumerate(prompt) if message.get("role") == "user"), default=-1)
    content = _content(prompt, place)
    if place == asking:
        return _asked_inside(prompt, place, content)
    question = _content(prompt, asking).strip() if asking >= 0 else ""
    return _made(prompt, place, content, _after_head(content), _before_tail(content), question)


def _asked_inside(prompt: str | Sequence[Message], place: int | None, content: str) -> Stuffed | None:
    """The question in the same content as the documents."""
    body = _CUE.sub("", content.rstrip()).rstrip()
    end, start = _before_question(body)
    part = body[start:]
    named = [*_NAMES.finditer(part)]
    if not named and len(body) < len(content.rstrip()):
        first = _NAMES.search(content[:NEAR])
        if first is not None:
            line = content.find("\n", first.end())
            return _made(prompt, place, content, line, len(body), content[first.end() : line].strip())
    question = part[named[-1].end() :] if named else part[_last_paragraph(part) :]
    if place is None and not named and "?" not in question and len(body) == len(content.rstrip()):
        return None  # a text to continue
    return _made(prompt, place, content, _after_head(body[:end]), end, question.strip())


def _made(
    prompt: str | Sequence[Message], place: int | None, content: str, start: int, end: int, question: str
) -> Stuffed | None:
    documents = content[start:end].strip()
    if not question or len(question) > NEAR or not documents:
        return None
    start = content.index(documents, start)  # the white space around them stays
    return Stuffed(prompt, place, start, start + len(documents), question)


def _before_question(body: str) -> tuple[int, int]:
    """Where the documents end, and where what stands between them and the question does."""
    near = max(len(body) - NEAR, 0)
    separators = [match for match in _SEPARATES.finditer(body, near) if body[match.end() :].strip()]
    if separators:
        return separators[-1].start(), separators[-1].end()
    return _last_paragraph(body), _last_paragraph(body)


def _last_paragraph(text: str) -> int:
    """Where the last paragraph begins."""
    return max((match.end() for match in _BLANK.finditer(text.rstrip())), default=0)


def _after_head(content: str) -> int:
    """Where the documents begin: after the first paragraph or separator, if that is near, and separators that follow."""
    ends = [match.end() for match in (_SEPARATES.search(content, 0, NEAR), _BLANK.search(content, 0, NEAR)) if match]
    first = min(ends, default=0)
    first = first if first <= SHORT else 0
    while (match := _SEPARATES.match(content, first + _spaces(content, first))) is not None:
        first = match.end()
    return first


def _before_tail(content: str) -> int:
    """Where the documents end: before a separator near the end, or a short last paragraph."""
    separators = [*_SEPARATES.finditer(content, max(len(content) - SHORT, 0))]
    if separators:
        return separators[0].start()
    last = _last_paragraph(content)
    return last if 0 < len(content) - last <= SHORT and last > len(content) // 2 else len(content)


def _spaces(text: str, start: int) -> int:
    """How much white space follows."""
    return len(text[start : start + NEAR]) - len(text[start : start + NEAR].lstrip())


def _content(prompt: str | Sequence[Message], place: int | None) -> str:
    if isinstance(prompt, str) or place is None:
        return str(prompt)
    content = prompt[place].get("content")
    return content if isinstance(content, str) else ""
