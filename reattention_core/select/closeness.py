"""How close each page comes to the words of a question, by the values of one layer; knows no passages and chooses nothing.

A token's value in a middle layer is about what the token means where it stands, without its position: words that mean the
same have values of about the same direction. So a page that holds what a question names has, for each of its words, a token
close to it. This is the late interaction of ColBERT (arXiv 2004.12832), there between vectors trained for it; here nothing is
trained and nothing is stored, because the values are in the cache already.
"""

import torch

from reattention_core.cache.pages import PAGE, Pages

AT_ONCE = 8192
"""Pages that are compared at a time."""

SAME = 0.98
"""Cosine, in the first layer, beyond which two tokens are the same; 1 but for the rounding of what is cached."""


def closeness(pages: Pages, words: torch.Tensor, layer: int) -> torch.Tensor:
    """The largest cosine between each word of a question and a token of every page, [Q, P] float32.

    Args:
        pages: the corpus.
        words: [G, Q, D], values of the question's tokens in the layer.
        layer: whose values are compared, all key-value heads of a token as one vector.
    """
    words = words.float() / words.float().square().sum((0, 2), keepdim=True).sqrt().clamp(min=1e-9)
    slot, found = torch.arange(PAGE, device=words.device), []
    for first in range(0, pages.n_pages, AT_ONCE):
        stop = min(first + AT_ONCE, pages.n_pages)
        product = square = words.new_zeros(())
        # A head at a time: its values are one matrix where they lie, and no more than that is copied.
        for word, held in zip(words, pages.scan_values(layer, first, stop), strict=True):
            value = held.float()
            product = product + (word @ value.flatten(0, 1).T).unflatten(1, value.shape[:2])
            square = square + value.square().sum(2)
        cosine = product / square.sqrt().clamp(min=1e-9)
        real = slot < pages.filled[first:stop, None]
        found.append(cosine.masked_fill(~real, -1.0).amax(2))
    return torch.cat(found, 1)


def rarity(same: torch.Tensor) -> torch.Tensor:
    """How much each word tells, in nats: its inverse document frequency, [Q].

    In a model's first layer a value is made of the token alone, so that places hold a word where its value is there, and no
    table of words is needed. (Models that add positions to their embeddings are refused.)

    Args:
        same: [Q, S], how close each of some places comes to each word in the first layer.
    """
    holding = (same > SAME).sum(1)
    return ((same.shape[1] + 1) / (holding + 0.5)).log().clamp(min=0)
