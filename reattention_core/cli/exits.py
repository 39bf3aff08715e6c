"""Every way a command can fail becomes one line on stderr and an exit code; knows no command."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from reattention_core.cli.console import notes, printable
from reattention_core.errors import CancelledError, InvalidRequestError, ReAttentionError

INTERRUPTED = 130


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Turn what a command raises into its exit code: 2 for bad input, 130 for Ctrl-C, 1 for anything else foreseen.

    Raises:
        typer.Exit: with that code. Errors that nobody foresaw keep their traceback.
    """
    try:
        yield
    except (KeyboardInterrupt, CancelledError):
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # whoever read our output has gone: typer ends without a word
        raise
    # A reader's missing package is an ImportError, a store that may not be written an OSError; both messages say so.
    except (ReAttentionError, ImportError, OSError) as error:
        show_error(error)
        raise typer.Exit(2 if isinstance(error, InvalidRequestError) else 1) from None


def show_error(error: Exception) -> None:
    """One red line."""
    notes.print("error: " + " ".join(printable(str(error)).split()), style="red")
