"""How likely a question is behind each of several passages that were read before; knows no rule and no documents.

A passage that answers a question makes its words likelier than one that does not, even where the two share no word: the
ranking of UPR (arXiv 2204.07496), there with a prompt of its own and passages read anew. Here the passages are the pages of
the corpus: only the question's few tokens are run, several passages in one batch, each row behind the sink and its own.
"""

from collections.abc import Sequence

import torch

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import CancelledError
from reattention_core.graphs import Graphs
from reattention_core.models.attach import Attachment
from reattention_core.prefill import Cancelled, running
from reattention_core.select.base import Selection
from reattention_core.select.fixed import Settled
from reattention_kernels import page_table

TOGETHER = 1024
"""Tokens of questions in one forward pass that is run: as many rows of logits over the vocabulary exist at once."""


def likelihood(
    attachment: Attachment,
    pages: Pages,
    ids: Sequence[int],
    scored: slice,
    passages: Sequence[torch.Tensor],
    cancelled: Cancelled,
    graphs: Graphs | None = None,
) -> torch.Tensor:
    """Log-likelihood of a part of a text behind each passage, which stands behind the sink.

    Args:
        attachment: the attached model.
        pages: the corpus; page 0 is the sink.
        ids: the text's token ids.
        scored: which of them count, the first one never.
        passages: page numbers [n] int64 of every passage, in reading order.
        cancelled: asked before every forward pass.
        graphs: passes of fixed shapes over these pages, or None to run each as it comes.

    Returns:
        [R] float32, in nats.

    Raises:
        CancelledError: `cancelled` said so.
    """
    scored = slice(max(scored.start, 1), scored.stop)
    # Passages of about one length share a pass: the shorter ones are padded.
    order = sorted(range(len(passages)), key=lambda row: len(passages[row]))
    # All travel at once where they must: the first pass runs while they come.
    pages, rows = pages.staged(passages)
    waiting, found = [rows[row] for row in order], list[torch.Tensor]()
    while waiting:
        if cancelled():
            raise CancelledError("cancelled while passages were compared")
        with running():
            heard = None
            if graphs is not None:
                heard = graphs.compared(attachment.model, pages, ids[: scored.stop], scored, waiting)
            if heard is None:
                heard = _heard(attachment, pages, ids[: scored.stop], scored, waiting)
        found.append(heard)
        waiting = waiting[len(heard) :]
    together = torch.cat(found)
    return together[torch.tensor(order, device=together.device).argsort()]


def _heard(
    attachment: Attachment, pages: Pages, ids: Sequence[int], scored: slice, passages: Sequence[torch.Tensor]
) -> torch.Tensor:
    """What `likelihood` gives for as many of the passages, from the first on, as share a pass."""
    some = passages[: max(TOGETHER // len(ids), 1)]
    text = torch.tensor(ids, device=pages.filled.device)
    cache = ContextCache(len(attachment.shapes), Settled(_selection(pages, some)), attachment.window, pages, len(ids))
    logits = attachment.model(
        input_ids=text[None, :-1].expand(len(some), -1),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=len(ids) - scored.start,
    ).logits
    chosen = logits.gather(2, text[scored.start :].expand(len(some), -1)[..., None])[..., 0].float()
    heard: torch.Tensor = (chosen - logits.float().logsumexp(-1)).sum(1)
    return heard


def _selection(pages: Pages, passages: Sequence[torch.Tensor]) -> Selection:
    """The sink's and each passage's tokens in reading order: addresses [R, n] int64, padded in front with -1, and the table."""
    device = pages.filled.device
    longest = max(len(passage) for passage in passages)
    table = torch.full((len(passages), 1 + longest), -1, dtype=torch.int64)
    for row, passage in enumerate(passages):
        table[row, longest - len(passage)] = 0
        table[row, 1 + longest - len(passage) :] = passage.cpu()
    table = table.to(device)
    slot = torch.arange(PAGE, device=device)
    real = (slot < pages.filled[table.clamp(min=0)][..., None]) & (table >= 0)[..., None]
    addresses = torch.where(real, table[..., None] * PAGE + slot, -1).flatten(1)
    # Padding moves to the front and the rest keeps its order, without a gap in the positions.
    real = real.flatten(1)
    addresses = addresses.gather(1, real.to(torch.uint8).argsort(dim=1, stable=True))
    addresses = addresses[:, addresses.shape[1] - int(real.sum(1).max()) :]
    return Selection(addresses, table=page_table(table[:, None], pages.filled))
