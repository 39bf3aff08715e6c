"""Memory of the host that a GPU may read where it lies; knows no budgets.

torch's own pinned memory is taken in powers of two, up to twice what is needed: pages are too large for that. So ordinary memory
is pinned where it is.
"""

import weakref

import torch

from reattention_core.cache.pages import Pages


def pinned(pages: Pages) -> Pages:
    """The same pages, pinned for as long as they live; where there is no GPU, or it refuses, as they are.

    Args:
        pages: on a CPU, in tensors of their own.
    """
    if not torch.cuda.is_available():
        return pages
    runtime = torch.cuda.cudart()
    tensors, begun = [t for t in (*pages.keys, *pages.values) if t.nbytes], list[int]()
    for tensor in tensors:
        if int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)):
            break
        begun.append(tensor.data_ptr())
    pages.pinned = len(begun) == len(tensors)
    weakref.finalize(pages, _release, begun).atexit = False
    return pages


def _release(begun: list[int]) -> None:
    torch.cuda.synchronize()  # a copy may still be reading
    for at in begun:
        torch.cuda.cudart().cudaHostUnregister(at)
