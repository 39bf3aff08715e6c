"""`python -m reattention_core.cli`: the command where nothing is installed."""

from reattention_core.cli import app

app()
