"""A conversation over one corpus: whose turn it is, and what of the past still fits; knows no option."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from reattention_core.cli.console import notes, out, printable, show_answer, show_sources_shortly
from reattention_core.cli.exits import show_error
from reattention_core.errors import ContextTooLongError

if TYPE_CHECKING:
    from reattention_core.answer import AnswerStream
    from reattention_core.corpus import Corpus
    from reattention_core.prompts import Turn

LEAVE = "/exit"


def typed_questions() -> Iterator[str]:
    """What a person types, until an empty line, /exit or Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its arrow keys and its history
    while True:
        try:
            line = input("\n> ").strip()
        except KeyboardInterrupt:  # an answer may just have ended when it was to be stopped
            out.out("")
            continue
        except EOFError:
            out.out("")
            return
        if line in ("", LEAVE):
            return
        yield line


def piped_questions(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a pipe that are not empty, each repeated in the output, until /exit."""
    for line in map(str.strip, lines):
        if line == LEAVE:
            return
        if line:
            out.out(f"\n> {printable(line)}")
            yield line


def converse(corpus: "Corpus", questions: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Answer one question after another, each with the turns before it.

    Args:
        corpus: open.
        questions: one a turn.
        settings: `strategy` and fields of `Generation`.
    """
    history: list[Turn] = []
    for question in questions:
        try:
            answer = show_answer(_stream(corpus, question, history, settings))
        except KeyboardInterrupt:
            notes.print("(stopped)", style="dim")
            continue
        except ContextTooLongError as error:
            show_error(error)
            continue
        show_sources_shortly(answer)
        history.append((question, answer.text))


def _stream(corpus: "Corpus", question: str, history: "list[Turn]", settings: Mapping[str, Any]) -> "AnswerStream":
    """Begin an answer; turns that no longer fit the window leave the history, the oldest first."""
    kept = list(history)
    while True:
        try:
            stream = corpus.stream(question, history=kept, **settings)
        except ContextTooLongError:
            if not kept:
                raise
            del kept[0]
        else:
            break
    if len(kept) < len(history):
        notes.print("(the oldest turns no longer fit the window and are left out from here on)", style="dim")
    history[:] = kept
    return stream
