"""The commands that ask saved corpora; knows no layout of a page and no tensor.

Nothing that imports torch is imported before a command runs: help must come at once.
"""
# ruff: noqa: D301  # a \b in a docstring keeps the lines of an example apart in the help

import sys
from pathlib import Path
from typing import Annotated

import typer

from reattention_core.cli import options
from reattention_core.cli.chat import converse, piped_questions, typed_questions
from reattention_core.cli.console import notes, out, show_answer, show_sources, show_timings
from reattention_core.cli.exits import ending_cleanly
from reattention_core.errors import InvalidRequestError


@ending_cleanly()
def ask(
    context: typer.Context,
    name: options.NameArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.")],
    strategy: options.StrategyOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_p: options.TopPOption = None,
    seed: options.SeedOption = None,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    dtype: options.DTypeOption = "auto",
    as_json: options.JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Also write a page: the answer, the passages in their documents, a map of all."
        ),
    ] = None,
) -> None:
    """Answer one question from a corpus, and show the passages that were read for it.

    \b
    Example:  reattention ask handbook "How long is the warranty?"
              reattention ask handbook "Who pays for the return?" --html report.html
    """
    from reattention_core.cli.loading import opened

    settings = options.generation(max_new_tokens, temperature, top_p, seed)
    if html is not None and not html.parent.is_dir():  # before the seconds that loading a model takes
        raise InvalidRequestError(
            f"there is no folder {str(html.parent)!r} to write {html.name} to: make it, or name another"
        )
    with opened(context.obj, name, model, device, dtype) as corpus:
        if as_json:
            answer = corpus.ask(question, strategy=strategy, **settings)
            out.out(answer.model_dump_json(indent=2))
        else:
            answer = show_answer(corpus.stream(question, strategy=strategy, **settings))
            show_sources(answer)
            show_timings(answer)
        if html is not None:
            answer.show().save(html)
            notes.print(f"\nwrote {html}", style="dim")


@ending_cleanly()
def chat(
    context: typer.Context,
    name: options.NameArgument,
    strategy: options.StrategyOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_p: options.TopPOption = None,
    seed: options.SeedOption = None,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    dtype: options.DTypeOption = "auto",
) -> None:
    """Have a conversation over one corpus.

    An empty line, /exit or Ctrl-D leaves; Ctrl-C stops the answer that is being written. Questions may also come from a
    pipe, one a line.

    \b
    Example:  reattention chat handbook
              reattention chat handbook < questions.txt
    """
    from reattention_core.cli.loading import opened

    settings = options.generation(max_new_tokens, temperature, top_p, seed)
    with opened(context.obj, name, model, device, dtype) as corpus:
        typed = sys.stdin.isatty()
        if typed:
            notes.print(f"{name}: {len(corpus.documents):,} documents. An empty line leaves.", style="dim")
        questions = typed_questions() if typed else piped_questions(sys.stdin)
        converse(corpus, questions, {"strategy": strategy, **settings})
