"""How likely a model finds given tokens, one after another, at any length; knows no task.

Attached, a text is read in chunks under a selection rule, as a prompt of any length is; detached, in one pass as
transformers does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.engine import Engine
from reattention_core.prefill import prefill, running
from reattention_core.select import Context, Selector


@dataclass(frozen=True)
class Likelihood:
    """Of the last tokens of a text.

    Attributes:
        each: [n] float32, natural logarithm of every token's probability.
        greedy: whether each of them is the likeliest.
        widest: tokens that attention looked at at most.
    """

    each: torch.Tensor
    greedy: bool
    widest: int

    @property
    def mean(self) -> float:
        """Mean logarithm."""
        return self.each.mean().item()


def read(engine: Engine, selector: Selector, ids: Sequence[int], last: int) -> Likelihood:
    """The last tokens' likelihood under a selection rule.

    Args:
        engine: its model is attached.
        selector: what may be seen beyond the rule's own window.
        ids: a text, of any length.
        last: tokens that are scored, fewer than there are.

    Raises:
        ValueError: nothing stands before the first scored token.
    """
    if not 0 < last < len(ids):
        raise ValueError(f"from 1 to {len(ids) - 1} of {len(ids)} tokens can be scored, got {last}")
    attachment = engine.attachment
    with engine.busy():
        context = Context(attachment.window, len(ids), attachment.scaling, attachment.rotations)
        reader = selector.reader(context)
        cache = ContextCache(len(attachment.shapes), reader, attachment.window)
        text = torch.tensor([list(ids)], device=attachment.model.device)
        # The token before the first scored one gives its probability; the last one's own successor is not known.
        before = (len(ids) - last - 1) // reader.chunk * reader.chunk
        if before:
            prefill(attachment.model, cache, text[:, :before], reader.chunk, lambda: False)
        parts = []
        with running():
            for piece in text[:, before:-1].split(reader.chunk, 1):
                logits = attachment.model(input_ids=piece, past_key_values=cache, use_cache=True).logits
                parts.append(logits[0].float())
        each, greedy = _of(torch.cat(parts)[-last:], text[0, -last:])
        return Likelihood(each, greedy, cache.widest)


def read_stock(model: PreTrainedModel, ids: Sequence[int], last: int) -> Likelihood:
    """The last tokens' likelihood by the model as it is, in one pass; arguments as for `read`."""
    text = torch.tensor([list(ids)], device=model.device)
    with running():
        logits = model(input_ids=text[:, :-1], use_cache=False, logits_to_keep=last).logits
        each, greedy = _of(logits[0].float(), text[0, -last:])
    return Likelihood(each, greedy, len(ids))


def _of(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Log probabilities of tokens [n] under logits [n, V], and whether all of them are the likeliest."""
    each = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return each.cpu(), bool((logits.argmax(-1) == tokens).all())
