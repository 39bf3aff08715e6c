"""How far an ingest is: a bar on a terminal, a line every tenth of the way elsewhere; knows only two numbers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn

from reattention_core.cli.console import notes


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """A function for `Engine.ingest(progress=…)` that takes the tokens read so far and the tokens there are."""
    began = time.perf_counter()

    def how_far(done: int, total: int) -> str:
        speed = done / (time.perf_counter() - began)
        minutes, seconds = divmod(round((total - done) / speed), 60)
        return f"{done:,} of {total:,} tokens, {speed:,.0f} tokens/s, {minutes}:{seconds:02} left"

    if not notes.is_terminal:
        tenths = 0

        def line(done: int, total: int) -> None:
            nonlocal tenths
            if done * 10 // total > tenths:
                tenths = done * 10 // total
                notes.print(f"reading: {how_far(done, total)}")

        yield line
        return

    with Progress("reading", BarColumn(bar_width=20), TextColumn("{task.fields[how_far]}"), console=notes) as bar:
        # How many tokens there are is known once the documents are encoded: until then the bar only moves.
        task = bar.add_task("", total=None, how_far="")
        yield lambda done, total: bar.update(task, completed=done, total=total, how_far=how_far(done, total))
