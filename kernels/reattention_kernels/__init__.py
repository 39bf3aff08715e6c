"""The hot operations of selection and attention; tensors in, tensors out.

Knows nothing of models, caches or documents: only shapes. `dispatch` picks an implementation, each operation's folder
holds them. Shapes use one letter code here and in `reattention_core`:

    B rows of a batch     H query heads       G key-value heads (H is a multiple of G)
    Q query tokens        N keys              P pages            T tokens in a page (32)
    W window tokens       D head dimension    L layers           S sets that are treated alike
"""

from reattention_kernels.attention.reference import attend
from reattention_kernels.dispatch import (
    attend_selected,
    copy_pages,
    fused,
    most_voted,
    one_per_block,
    page_evidence,
    rotate,
    select_topk,
    write_pages,
)
from reattention_kernels.key_index import KeyIndex, indexed
from reattention_kernels.selected_attention.page_table import PageTable, page_table

__all__ = [
    "KeyIndex",
    "PageTable",
    "attend",
    "attend_selected",
    "copy_pages",
    "fused",
    "indexed",
    "most_voted",
    "one_per_block",
    "page_evidence",
    "page_table",
    "rotate",
    "select_topk",
    "write_pages",
]
