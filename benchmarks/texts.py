"""The long text that programs read; knows no model."""

from pathlib import Path

import typer

ESSAYS = Path(__file__).parents[2] / "shared" / "data" / "essays.txt"
"""Paul Graham's, which are not part of this repository."""


def long_text(path: Path) -> str:
    """What a program reads; said before any model is loaded where it is not there."""
    if not path.exists():
        raise typer.BadParameter(f"{path} does not exist: name a long text with --text")
    return path.read_text()
