"""Shows how far a long reading has come; knows only counts of tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and the tokens there are."""


@contextmanager
def reporting(progress: bool | Progress, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes newly read tokens and shows progress as the caller wishes."""
    if callable(progress):
        done = 0

        def report(new: int) -> None:
            nonlocal done
            done += new
            progress(done, total)

        yield report
        return
    # disable=None: a bar on a terminal only.
    off = None if progress else True
    with tqdm(total=total, unit="tok", unit_scale=True, desc="reading", disable=off) as bar:

        def show(new: int) -> None:
            bar.update(new)

        yield show
