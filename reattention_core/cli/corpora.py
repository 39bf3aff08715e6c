"""The commands that make, list and delete saved corpora; knows no model and no question.

Nothing that imports torch is imported before a command runs: help must come at once.
"""
# ruff: noqa: D301  # a \b in a docstring keeps the lines of an example apart in the help

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reattention_core.cli import options
from reattention_core.cli.console import notes, out, printable, size
from reattention_core.cli.exits import ending_cleanly
from reattention_core.errors import CorpusError, InvalidRequestError

if TYPE_CHECKING:
    from reattention_core.store import Store


@ending_cleanly()
def ingest(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", exists=True, help="Files, or folders of documents.")],
    name: Annotated[str, typer.Option(help="Name to save the corpus under.")],
    mode: Annotated[
        options.Mode, typer.Option(help="Read every document alone, or each after the earlier ones.")
    ] = "independent",
    strategy: options.StrategyOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a corpus of that name.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be read.")] = False,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    dtype: options.DTypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Read documents once, and save what the model made of them.

    Folders are searched for .txt, .md, .rst, .html and .pdf files. What cannot be read is named and left out.

    \b
    Example:  reattention ingest docs/ notes.md --name handbook
    """
    from reattention_core.cli.loading import loaded
    from reattention_core.cli.progress import reading
    from reattention_core.store import Store

    Store(context.obj).check_free(name, replace)  # before the seconds that loading a model takes
    with loaded(context.obj, model, device, dtype) as engine:
        began = time.perf_counter()
        with reading() as progress:
            corpus = engine.ingest(
                paths, name=name, mode=mode, strategy=strategy, strict=strict, replace=replace, progress=progress
            )
        seconds = time.perf_counter() - began
    about = {
        **_about(Store(context.obj), name),
        "seconds": round(seconds, 3),
        "left_out": [{"path": error.path, "reason": error.reason} for error in corpus.skipped],
    }
    if as_json:
        out.out(json.dumps(about, indent=2))
        return
    left_out = f", {len(corpus.skipped)} left out" if corpus.skipped else ""
    out.out(
        f"{name}: {about['documents']:,} documents read{left_out}, {about['tokens']:,} tokens, {size(about['bytes'])} "
        f"on disk, {seconds:.1f} s"
    )


@ending_cleanly()
def list_corpora(context: typer.Context, as_json: options.JsonOption = False) -> None:
    """List the saved corpora.

    \b
    Example:  reattention list
    """
    from reattention_core.store import Store

    store, found = Store(context.obj), []
    for name in store.names():
        try:
            found.append(_about(store, name))
        except CorpusError as error:  # the others can still be listed
            notes.print(f"warning: {error}", style="yellow")
    if as_json:
        out.out(json.dumps(found, indent=2))
    elif not found:
        notes.print(f"no corpora in {context.obj}: make one with reattention ingest PATH --name NAME")
    else:
        rows = [
            [c["name"], f"{c['documents']:,}", f"{c['tokens']:,}", size(c["bytes"]), c["mode"], c["model"]]
            for c in found
        ]
        _show_table(["name", "documents", "tokens", "size", "mode", "model"], rows)


@ending_cleanly()
def remove(
    context: typer.Context,
    name: options.NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a corpus from disk; the documents it was read from are not touched.

    \b
    Example:  reattention remove handbook
    """
    from reattention_core.store import Store

    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequestError("nobody can be asked here whether to remove it: pass --yes")
        typer.confirm(f"Remove {name!r}? To ask it again, its documents would have to be read again.", abort=True)
    Store(context.obj).remove(name)
    out.out(f"removed {name}")


def _about(store: "Store", name: str) -> dict[str, Any]:
    """A corpus by its manifest, in the words of this command's JSON."""
    manifest = store.manifest(name)
    return {
        "name": name,
        "documents": len(manifest.documents),
        "tokens": sum(document.n_tokens for document in manifest.documents),
        "bytes": manifest.size,
        "mode": manifest.mode,
        "model": manifest.model,
    }


def _show_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need to be, numbers to the right; cut nowhere, so that a pipe has whole names."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        cells = [
            cell.rjust(width) if title in ("documents", "tokens", "size") else cell.ljust(width)
            for title, cell, width in zip(head, row, widths, strict=True)
        ]
        out.print(printable("  ".join(cells).rstrip()), style="bold" if row is head else None)
