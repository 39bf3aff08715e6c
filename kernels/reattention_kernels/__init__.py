"""The hot operations of selection and attention; tensors in, tensors out.

Knows nothing of models, caches or documents: only shapes. `dispatch` picks an implementation, each operation's folder
holds them. Shapes use one letter code here and in `reattention_core`:

    B rows of a batch     H query heads       G key-value heads (H is a multiple of G)
    Q query tokens        N keys              P pages            T tokens in a page (32)
    W window tokens       D head dimension    L layers
"""

from reattention_kernels.dispatch import attend, most_voted, page_evidence, select_topk

__all__ = ["attend", "most_voted", "page_evidence", "select_topk"]
