"""The `reattention` command: puts its sub-commands together and knows what none of them does."""

# ruff: noqa: D301  # a \b in a docstring keeps the lines of the overview apart in the help

from pathlib import Path
from typing import Annotated

import typer

from reattention_core.cli import corpora, questions
from reattention_core.cli.bench import bench
from reattention_core.cli.console import out
from reattention_core.home import home

# Plain help: typer's own frames would be drawn into pipes and files as well.
app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from reattention_core import __version__

        out.out(f"reattention {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of saved corpora, instead of the cache folder's.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """A local language model answers over documents far larger than its window, and says where it read.

    \b
    First let it read documents, once:  reattention ingest docs/ --name handbook
    Then ask one question:              reattention ask handbook "How long is the warranty?"
    Or have a conversation:             reattention chat handbook

    Corpora are kept on disk: `reattention list` shows them, `reattention remove handbook` deletes one.
    """
    context.obj = store or home() / "corpora"


app.command("ingest")(corpora.ingest)
app.command("ask")(questions.ask)
app.command("chat")(questions.chat)
app.command("list")(corpora.list_corpora)
app.command("remove")(corpora.remove)
app.command("bench")(bench)
