"""Runs tokens through the model to fill a cache, in chunks that can be cancelled; knows no documents and no selection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.errors import CancelledError

Cancelled = Callable[[], bool]
"""Asked between chunks and between tokens: whether to stop."""


def prefill(
    model: PreTrainedModel,
    cache: ContextCache,
    ids: torch.Tensor,
    chunk: int,
    cancelled: Cancelled,
    report: Callable[[int, int], None] = lambda done, new: None,
) -> None:
    """Read tokens into the cache's tail; no logits are computed.

    Args:
        model: an attached model.
        cache: its tail grows by n tokens.
        ids: [B, n] int64; rows may be padded on the right.
        chunk: tokens of each row that are run at a time.
        cancelled: asked before every chunk.
        report: called after every chunk with the columns of `ids` read so far, and in this chunk.

    Raises:
        CancelledError: `cancelled` said so; the cache holds the chunks run so far.
    """
    done = 0
    for piece in ids.split(chunk, 1):
        # Another request may have the model meanwhile, so nothing of this one may be switched on.
        if cancelled():
            raise CancelledError("cancelled while reading a prompt")
        with running():
            model.base_model(input_ids=piece, past_key_values=cache, use_cache=True)
            done += piece.shape[1]
            report(done, piece.shape[1])


@contextmanager
def running() -> Iterator[None]:
    """What every forward pass runs under: no gradients, and never cuDNN's attention.

    cuDNN plans anew for each window length: measured 14 s of an 8-token answer.
    """
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.inference_mode(), sdpa_kernel(backends):
        yield
