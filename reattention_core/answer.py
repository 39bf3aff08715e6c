"""What a question gives back: text, sources and a count of what it took; knows no model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from reattention_core.evidence import Evidence
from reattention_core.sources import Source
from reattention_core.structured.tools import ToolCall

if TYPE_CHECKING:
    from reattention_core.view import View


class Usage(BaseModel):
    """What one answer took.

    Attributes:
        prompt_tokens: tokens of the prompt that were run for this answer.
        cached_tokens: tokens that were read from the cache instead of being run: the corpus's, or the prompt's beginning.
        window_tokens: tokens that attention looked at, the corpus's and the prompt's.
        completion_tokens: tokens drawn.
        recall_seconds: from the call until it was known what to read.
        first_token_seconds: from the call to the first piece of text.
        seconds: from the call to the end.
        tail_bytes: memory that this question added to the shared corpus.
    """

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    cached_tokens: int
    window_tokens: int
    completion_tokens: int
    recall_seconds: float
    first_token_seconds: float
    seconds: float
    tail_bytes: int


class Answer(BaseModel):
    """An answer.

    Attributes:
        text: what the model wrote, without the stop string that ended it.
        sources: the passages it read, those with the most evidence first; of a long prompt, passages of its text, whose
            `document_id` is "prompt"; empty for other prompts without a corpus.
        usage: tokens and times.
        finish_reason: "stop" (a stop string or the end token), "length" (max_new_tokens) or "tool_calls".
        tool_calls: the calls that the model asks for.
        evidence: how much every page of the corpus was asked for; None without a corpus. It is not part of the answer as JSON.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    text: str
    sources: list[Source]
    usage: Usage
    finish_reason: str
    tool_calls: list[ToolCall] = []
    evidence: SkipJsonSchema[Evidence | None] = Field(default=None, exclude=True, repr=False)

    def show(self) -> "View":
        """A page with the answer, the passages in their documents and a map of the corpus.

        The last line of a notebook cell shows it; `answer.show().save("report.html")` writes it, for any browser.

        Raises:
            InvalidRequestError: the answer does not come from a corpus.
        """
        from reattention_core.view import View

        return View.of(self)


class AnswerStream:
    """Pieces of an answer as they are drawn; the pieces joined are the answer's text.

    Leaving the loop, or `close`, stops the model within two tokens.

    Attributes:
        answer: the whole answer, once the last piece has been given out.
        cancel: stops the model from any thread, also while another one waits for the next piece, which then raises
            CancelledError.
    """

    def __init__(self, pieces: Iterator[str | Answer], cancel: Callable[[], None]) -> None:
        self._pieces, self.cancel = pieces, cancel
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        if isinstance(piece, Answer):
            self._answer = piece
            raise StopIteration
        return piece

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            RuntimeError: there are pieces left.
        """
        if self._answer is None:
            raise RuntimeError("the answer is not complete: iterate to the end first")
        return self._answer

    def close(self) -> None:
        """Stop the model if it is still writing."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


def finish(stream: AnswerStream) -> Answer:
    """Iterate to the end and give the whole answer."""
    try:
        for _ in stream:
            pass
    finally:
        stream.close()
    return stream.answer
