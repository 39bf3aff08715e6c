"""A local language model answers over documents far larger than its window, and says where it read.

Documents become a key-value cache once; the model's own attention finds what a question needs. See `Engine`. One letter
code for tensor shapes is used everywhere, see `reattention_kernels`.
"""

from reattention_core.answer import Answer, AnswerStream, Usage
from reattention_core.config import Config, Generation
from reattention_core.corpus import Corpus
from reattention_core.documents import Document
from reattention_core.engine import Engine
from reattention_core.select import Consensus, LongHeads, Reader, ReAttention, Selection, Selector
from reattention_core.sources import Source

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "Config",
    "Consensus",
    "Corpus",
    "Document",
    "Engine",
    "Generation",
    "LongHeads",
    "ReAttention",
    "Reader",
    "Selection",
    "Selector",
    "Source",
    "Usage",
]
