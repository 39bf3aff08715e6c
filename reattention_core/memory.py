"""Works out the memory that an ingest needs before the first token is read; knows no documents."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from reattention_core import cgroup
from reattention_core.cache.layout import Layout
from reattention_core.cache.pages import PAGE
from reattention_core.errors import CapacityError, ContextTooLongError
from reattention_core.graphs import LOGITS, LONGEST, MOST, ROWS
from reattention_core.models.attach import Attachment
from reattention_kernels.topk import WORKSPACE

RESERVE = 0.05
"""Share of the free memory that is left alone, for what the estimate below does not know of."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes an ingest will take, beside the bytes that are free.

    Attributes:
        pages: keys and values of the corpus: exact.
        working: what one forward pass takes, or on a GPU one question later if that is more: an estimate.
        free: bytes free on the model's device now.
        device: its name.
    """

    pages: int
    working: int
    free: int
    device: str


def plan(
    attachment: Attachment, layout: Layout, dtype: torch.dtype, batch_tokens: int, selecting: bool = False
) -> MemoryPlan:
    """The memory plan of an ingest.

    Args:
        attachment: the attached model.
        layout: where the documents will lie.
        dtype: of the pages.
        batch_tokens: tokens in one forward pass of short documents.
        selecting: whether documents choose among the keys of earlier ones.
    """
    model, n_pages = attachment.model, len(layout.first)
    working = _working_bytes(attachment, max(layout.lengths), batch_tokens)
    if model.device.type == "cuda":
        working += WORKSPACE * selecting
        working = max(working, _asking_bytes(attachment, n_pages))
    return MemoryPlan(
        pages=n_pages * PAGE * attachment.per_token * dtype.itemsize,
        working=working,
        free=free_bytes(model.device),
        device=str(model.device),
    )


def prompt_tokens(attachment: Attachment) -> int:
    """Tokens of one prompt and its answer that memory holds now: each leaves its keys and values, in the model's own type."""
    model = attachment.model
    return int(free_bytes(model.device) * (1 - RESERVE)) // (attachment.per_token * model.dtype.itemsize)


def check_prompt(attachment: Attachment, n_prompt: int, n_answer: int, limit: int | None) -> None:
    """Refuse a prompt that is too long before any of it is read; nothing is ever cut off.

    Raises:
        ContextTooLongError: with both numbers.
    """
    needed, holds = n_prompt + n_answer, prompt_tokens(attachment)
    most = holds if limit is None else min(limit, holds)
    if needed > most:
        raise ContextTooLongError(
            f"the prompt takes {n_prompt:,} tokens and the answer may take {n_answer:,}, more than the {most:,} that "
            f"{'memory holds now' if most == holds else 'are allowed'}: ask with less text, let the answer be shorter, or "
            "ingest the text and ask the corpus",
            n_tokens=needed,
            limit=most,
        )


def batch_tokens(attachment: Attachment) -> int:
    """Tokens in one forward pass of ingest that suit the model's device."""
    device = attachment.model.device
    if device.type != "cuda":
        return 4096
    per_token = _working_bytes(attachment, 1, 1)
    return max(1024, min(65536, free_bytes(device) // 8 // per_token))


def _working_bytes(attachment: Attachment, longest: int, batch_tokens: int) -> int:
    """What reading takes beside the pages, an estimate: a tail for each token of a batch, and one layer's activations."""
    model = attachment.model
    # A batch's tail exists twice, un-rotated and rotated, and has room to double; a layer's activations are a few times
    # the widest projection.
    tail = max(batch_tokens, longest) * attachment.per_token * model.dtype.itemsize * 4
    config = model.config.get_text_config()
    hidden = config.hidden_size * 8 + 4 * (getattr(config, "intermediate_size", 0) or 0)
    return int(tail + batch_tokens * hidden * model.dtype.itemsize)


def _asking_bytes(attachment: Attachment, n_pages: int) -> int:
    """What a question of LONGEST tokens takes on a GPU beside the pages, an estimate.

    Recall keeps the mass that each of a layer's rows gives each page, and with the corpus what an empty question gives
    them. A recorded pass has a tail of its own; there may be `MOST` that ask and answer, and twice as many that compare, most of
    them two or six times ROWS texts of a page, with scores over the vocabulary.
    """
    heads, itemsize = [heads for heads, _ in attachment.query_shapes], attachment.model.dtype.itemsize
    recall = 4 * n_pages * (max(heads) * LONGEST + sum(heads))
    tails = 2 * MOST * (LONGEST + 4 * ROWS * PAGE) * attachment.per_token * itemsize
    scores: int = min(LOGITS, 6 * ROWS * LONGEST * attachment.model.config.get_text_config().vocab_size)
    return recall + tails + 2 * scores * itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on the host, that its container allows too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    allowed = cgroup.free_bytes()
    return available if allowed is None else min(available, allowed)


@contextmanager
def within_memory() -> Iterator[None]:
    """Turns an allocation that failed in spite of the plan into the library's own error.

    Raises:
        CapacityError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        # OutOfMemoryError is one; on a CPU torch raises a plain one.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise CapacityError(
            f"memory ran out ({error}): lower ingest_tokens, or ingest fewer documents", needed=0, free=0
        ) from error
