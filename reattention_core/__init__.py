"""A local language model answers over documents far larger than its window, and says where it read.

Documents become a key-value cache once; the model's own attention finds what a question needs. See `Engine`. One letter
code for tensor shapes is used everywhere, see `reattention_kernels`.

Names are imported when they are first used, so that `reattention --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reattention_core.answer import Answer as Answer
    from reattention_core.answer import AnswerStream as AnswerStream
    from reattention_core.answer import Usage as Usage
    from reattention_core.config import Config as Config
    from reattention_core.config import Generation as Generation
    from reattention_core.corpus import Corpus as Corpus
    from reattention_core.documents import Document as Document
    from reattention_core.editing import Changes as Changes
    from reattention_core.engine import Engine as Engine
    from reattention_core.evidence import Evidence as Evidence
    from reattention_core.select import Consensus as Consensus
    from reattention_core.select import LongHeads as LongHeads
    from reattention_core.select import Reader as Reader
    from reattention_core.select import ReAttention as ReAttention
    from reattention_core.select import Selection as Selection
    from reattention_core.select import Selector as Selector
    from reattention_core.select import Settled as Settled
    from reattention_core.sources import Source as Source
    from reattention_core.structured.tools import ToolCall as ToolCall
    from reattention_core.view import View as View

__version__ = "0.1.0"

_MODULES = {
    "answer": ("Answer", "AnswerStream", "Usage"),
    "config": ("Config", "Generation"),
    "corpus": ("Corpus",),
    "documents": ("Document",),
    "editing": ("Changes",),
    "engine": ("Engine",),
    "evidence": ("Evidence",),
    "select": ("Consensus", "LongHeads", "ReAttention", "Reader", "Selection", "Selector", "Settled"),
    "sources": ("Source",),
    "structured.tools": ("ToolCall",),
    "view": ("View",),
}

__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"reattention_core.{module}"), name)
    raise AttributeError(f"module 'reattention_core' has no attribute {name!r}")
