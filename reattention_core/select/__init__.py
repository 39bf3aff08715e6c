"""Which keys a query may see: one idea a file, each behind the interface of `base`."""

import difflib

from reattention_core.errors import InvalidConfigError
from reattention_core.select.base import Context, Probe, Probed, Reader, Selection, Selector
from reattention_core.select.consensus import Consensus
from reattention_core.select.fixed import Settled
from reattention_core.select.longheads import LongHeads
from reattention_core.select.reattention import ReAttention
from reattention_core.select.recall import mass, recall

SELECTORS: dict[str, type[Selector]] = {
    "consensus": Consensus,
    "reattention": ReAttention,
    "longheads": LongHeads,
}


def named(name: object, window: int) -> Selector:
    """The rule of a name, with parameters that suit a model trained on `window` tokens.

    Raises:
        InvalidConfigError: no rule has that name.
    """
    if not isinstance(name, str) or name not in SELECTORS:
        close = difflib.get_close_matches(str(name), SELECTORS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidConfigError(
            f"unknown strategy {name!r}{hint} (there are: {', '.join(SELECTORS)}, or a Selector of yours)"
        )
    return SELECTORS[name].for_window(window)


__all__ = [
    "SELECTORS",
    "Consensus",
    "Context",
    "LongHeads",
    "Probe",
    "Probed",
    "ReAttention",
    "Reader",
    "Selection",
    "Selector",
    "Settled",
    "mass",
    "named",
    "recall",
]
