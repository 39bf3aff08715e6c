"""Which keys a query may see: one idea a file, each behind the interface of `base`."""

from reattention_core.select.base import Context, Probe, Reader, Selection, Selector
from reattention_core.select.consensus import Consensus
from reattention_core.select.longheads import LongHeads
from reattention_core.select.reattention import ReAttention

SELECTORS: dict[str, type[Selector]] = {
    "consensus": Consensus,
    "reattention": ReAttention,
    "longheads": LongHeads,
}

__all__ = [
    "SELECTORS",
    "Consensus",
    "Context",
    "LongHeads",
    "Probe",
    "ReAttention",
    "Reader",
    "Selection",
    "Selector",
]
