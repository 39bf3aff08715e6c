"""A fault: what is done to the library, how often, and that nothing was lost by it; the rows of docs/reliability.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Run = Callable[[Path], int]


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: what goes wrong.
        tried: how it is made to, and what must come of it.
        run: does so in an empty folder, and returns how many times; raises AssertionError where anything was lost.
    """

    name: str
    tried: str
    run: Run

    def row(self, times: int) -> str:
        """As it stands in the table, once `run` has returned: so nothing was lost."""
        return f"| {self.name} | {self.tried} | {times:,} | nothing |"


def fault(name: str, tried: str) -> Callable[[Run], Fault]:
    """Makes a function one of the faults of its module."""
    return lambda run: Fault(name, tried, run)


def of(module: object) -> list[Fault]:
    """The faults of a module, in the order in which it has them."""
    return [value for value in vars(module).values() if isinstance(value, Fault)]
