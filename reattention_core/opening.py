"""Opens a saved corpus, once the model is seen to read as it did when it was saved; knows no files.

The fingerprint names what a corpus depends on as far as it has a name. What has none (another kernel, another version of a
library, a weight between those that are sampled) shows in what the model makes of a text: the sink, 32 tokens that every
corpus begins with, is read again at opening and held against what was saved. It costs one short forward pass, or nothing
where the engine has read its sink already.
"""

from typing import TYPE_CHECKING

import torch

from reattention_core.cache.pages import Pages
from reattention_core.corpus import Corpus
from reattention_core.errors import FingerprintMismatchError
from reattention_core.memory import within_memory
from reattention_core.reading import summing_rule
from reattention_core.select import Consensus

if TYPE_CHECKING:
    from reattention_core.engine import Engine

LARGEST = {torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of the difference of a layer's keys or values, against their own length; the same weights on another device stay below."""


def opened(engine: "Engine", name: str) -> Corpus:
    """See `Engine.open`."""
    engine.weights.check(closely=True)
    with within_memory():
        saved = engine.store.load(name, engine.identity, torch.device("cpu"))
    _check_canary(engine, name, saved.pages)
    with engine.busy(), within_memory():
        pages = engine.tiers.place(saved.pages)
    about = saved.manifest
    selector = summing_rule(about.rule, about.summary_size)
    return Corpus(engine, name, pages, saved.documents, about.mode, (), selector, about.generation)


def _check_canary(engine: "Engine", name: str, pages: Pages) -> None:
    """Compare the saved sink with the sink as it is read now.

    Raises:
        FingerprintMismatchError: they differ; its field is "canary".
    """
    with engine.busy():
        now = engine.sink_page(Consensus(), lambda: False)
    for layer in range(pages.n_layers):
        read, saved = now.read(layer, 0, 1), pages.read(layer, 0, 1)
        for what, new, old in zip(("keys", "values"), read, saved, strict=True):
            difference = _difference(new, old)
            if not difference <= LARGEST[old.dtype]:  # NaN is never at most anything
                raise FingerprintMismatchError(
                    f"corpus {name!r} cannot be used: the model reads its first 32 tokens otherwise than when it was saved ({what} "
                    f"of layer {layer} differ by {difference:.2g} of their length), though all names are the same: "
                    "ingest it again with replace=True (--replace)",
                    fields=("canary",),
                )


def _difference(new: torch.Tensor, old: torch.Tensor) -> float:
    if new.shape != old.shape:
        return float("inf")
    new, old = new.cpu().float(), old.cpu().float()
    return float((new - old).norm() / old.norm())
