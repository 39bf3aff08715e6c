"""What the caller wants an answer to be: tool calls, JSON of a schema; knows the syntax and the grammar, and no model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reattention_core.errors import IncompleteAnswerError, InvalidConfigError
from reattention_core.structured.call_syntax import CallSyntax
from reattention_core.structured.constraint import Constraint, Grammars
from reattention_core.structured.grammar import answer_grammar, closed
from reattention_core.structured.tools import Tool, ToolCall, read_tools


@dataclass(frozen=True)
class Structure:
    """What an answer may be.

    Attributes:
        tools: that may be called.
        choice: "auto", "required", "none" or the name of the tool to call.
        parallel: whether there may be several calls.
        schema: of what the model says when it calls nothing; None for text.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    parallel: bool = False
    schema: Mapping[str, Any] | None = None

    @classmethod
    def read(
        cls,
        tools: Iterable[Mapping[str, Any]] | None,
        tool_choice: str | None,
        parallel_tool_calls: bool,
        schema: Mapping[str, Any] | None,
    ) -> "Structure":
        """A structure of a call's arguments.

        Raises:
            InvalidConfigError: a tool, the choice or the schema is not what it must be.
        """
        read = read_tools(tools or ())
        if schema is not None and not isinstance(schema, Mapping):
            raise InvalidConfigError(f"schema is a JSON schema as a dict, got {type(schema).__name__}")
        if tool_choice not in (None, "auto", "none") and not read:
            raise InvalidConfigError(f"tool_choice is {tool_choice!r}, but there are no tools: pass some")
        return cls(read, tool_choice or "auto", parallel_tool_calls, schema)

    def __bool__(self) -> bool:
        """Whether anything is asked of the answer."""
        return bool(self.tools) or self.schema is not None

    def shape(self, grammars: Grammars, syntax: CallSyntax) -> "Shape":
        """What holds one answer to the structure.

        Raises:
            InvalidConfigError: a schema is wrong or cannot be enforced.
        """
        try:
            constraint = self._constraint(grammars, syntax, closed)
        except InvalidConfigError:
            # Closing can contradict what a schema says elsewhere; as it stands it may be followed.
            constraint = self._constraint(grammars, syntax, lambda schema: schema)
        with_text = self.schema is None and self.choice in ("auto", "none")
        return Shape(constraint, syntax, self.schema is not None, with_text)

    def _constraint(self, grammars: Grammars, syntax: CallSyntax, prepare: Callable[[Any], Any]) -> Constraint:
        tools = tuple(tool.model_copy(update={"parameters": prepare(tool.parameters)}) for tool in self.tools)
        grammar = answer_grammar(prepare(self.schema), tools, self.choice, self.parallel, syntax, grammars.literal)
        return grammars.constraint(grammar)


@dataclass(frozen=True)
class Shape:
    """A structure that one answer is held to.

    Attributes:
        constraint: allows the tokens.
        syntax: of the calls.
        with_schema: whether what is no call is JSON.
        with_text: whether what is no call is text.
    """

    constraint: Constraint
    syntax: CallSyntax
    with_schema: bool
    with_text: bool


class Calls:
    """Lets the text of an answer through as it comes and keeps its calls back until they are whole.

    Args:
        shape: of the answer.
        emit: called with every piece of text.
    """

    def __init__(self, shape: Shape, emit: Callable[[str], None]) -> None:
        self._shape, self._emit = shape, emit
        self._text, self._sent = "", 0

    def __call__(self, piece: str) -> None:
        """Take the next piece of what the model writes."""
        self._text += piece
        head = self._shape.syntax.head
        at = self._text.find(head)
        held = next((n for n in range(min(len(head) - 1, len(self._text)), 0, -1) if self._text.endswith(head[:n])), 0)
        self._send(at if at >= 0 else len(self._text) - held)

    def end(self, reason: str) -> tuple[list[ToolCall], str]:
        """The calls, and why the answer ended, once nothing follows.

        Args:
            reason: "stop" or "length".

        Raises:
            IncompleteAnswerError: it ended inside of a call or of JSON.
        """
        constraint, syntax = self._shape.constraint, self._shape.syntax
        at = self._text.find(syntax.head)
        # A number may always go on: one at which the tokens ran out is not known to be whole.
        open_end = self._shape.with_schema and at < 0 and reason == "length" and not constraint.final
        # A token may have been drawn after a stop string; the text before it is whole.
        stopped = self._shape.with_text and at < 0 and reason == "stop"
        if open_end or not (stopped or constraint.complete):
            raise IncompleteAnswerError(
                f"the answer ended ({reason}) in the middle of {'a tool call' if at >= 0 else 'its JSON'}: allow more "
                f"tokens or fewer stop strings. It began {self._text[:200]!r}",
                text=self._text,
            )
        if at >= 0:
            return syntax.read(self._text[at:]), "tool_calls"
        self._send(len(self._text))
        return [], "stop" if stopped or constraint.final else reason

    def _send(self, until: int) -> None:
        if until > self._sent:
            self._emit(self._text[self._sent : until])
            self._sent = until
