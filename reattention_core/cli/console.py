"""How an answer, its sources and its timings look on a terminal or in a pipe; knows no command and no model.

Results go to stdout and all else to stderr. Rich leaves colour out where there is no terminal; boxes are never drawn.
"""

import re
import textwrap
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from reattention_core.answer import Answer, AnswerStream
    from reattention_core.sources import Source


def _console(stderr: bool) -> Console:
    # Texts come from documents and models: they are shown as they are, not read as markup.
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    console.soft_wrap = not console.is_terminal  # a terminal gets whole words, a pipe whole lines
    return console


out, notes = _console(stderr=False), _console(stderr=True)

WIDEST = 100
QUOTE = 420
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters replaced: a document must not be able to steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def size(n_bytes: int) -> str:
    """Bytes for people: `2.6 GB`."""
    power = next((p for p in (3, 2, 1) if n_bytes >= 1000**p), 0)
    return f"{n_bytes / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB')[power]}"


def waiting(what: str) -> AbstractContextManager[Any]:
    """A sign on a terminal that something is being done."""
    return notes.status(f"{what} …") if notes.is_terminal else nullcontext()


def show_answer(stream: "AnswerStream") -> "Answer":
    """Print the pieces of an answer as they are drawn, and give the whole."""
    try:
        with waiting("recalling"):
            first = next(stream, "")
        for piece in chain([first], stream):
            out.out(printable(piece), end="")
    finally:
        stream.close()
        out.out("")
    if not stream.answer.text:
        notes.print("(the model wrote nothing)", style="dim")
    return stream.answer


def show_sources(answer: "Answer") -> None:
    """Every passage that was read, with its place, its score and its words, shortened."""
    width = min(out.width, WIDEST)
    for number, source in enumerate(answer.sources, 1):
        origin = f" ({printable(source.source)})" if source.source and source.title else ""
        place = f"characters {source.start:,} to {source.end:,}, score {source.score:.3f}"
        out.print(f"\n[{number}] {_title(source)}{origin}, {place}", style="cyan")
        quote = textwrap.shorten(printable(source.quote), QUOTE, placeholder=" …")
        out.print(textwrap.fill(quote, width, initial_indent="    ", subsequent_indent="    "), style="dim")


def show_sources_shortly(answer: "Answer") -> None:
    """The places alone, on one line."""
    places = [f"{_title(s)} {s.start:,}-{s.end:,} ({s.score:.3f})" for s in answer.sources]
    if places:
        out.print("from " + "; ".join(places), style="cyan")


def show_timings(answer: "Answer") -> None:
    """What the answer took, on one line."""
    usage = answer.usage
    limit = " (the most allowed)" if answer.finish_reason == "length" else ""
    out.print(
        f"\n{usage.cached_tokens:,} tokens read from the cache, {usage.window_tokens:,} in the window, "
        f"{usage.completion_tokens:,} drawn{limit}; first after {usage.first_token_seconds:.2f} s, {usage.seconds:.2f} s in all",
        style="dim",
    )


def _title(source: "Source") -> str:
    return printable(source.title or source.source or source.document_id)
