"""One state of a corpus: documents, their pages, and what was worked out for them; knows no edits, names or files.

A corpus that is edited gets a new edition. Questions hold the edition they began with, so an edit changes nothing under
them, and what belongs to an old edition is freed when its last question ends.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages, pages_for
from reattention_core.cache.stitched import Run, stitch
from reattention_core.cache.tiered import TieredPages
from reattention_core.documents import Document
from reattention_core.graphs import Graphs
from reattention_core.likelihood import likelihood
from reattention_core.models.attach import Attachment
from reattention_core.prefill import Cancelled, prefill, running
from reattention_core.prompts import Prompt
from reattention_core.select.base import Probe, Probed, Question, Trusted
from reattention_core.select.fixed import Recording, SinkAndLocal
from reattention_core.sources import ReadDocument


class Reading:
    """One question's claim to an edition."""


class Edition:
    """Documents and their pages, never changed.

    Args:
        attachment: the attached model that read them.
        pages: keys and values; page 0 is the sink's.
        documents: texts and where their tokens lie.
        cuda_graphs: whether passes over the pages are recorded, on a GPU.
        trusted: gives what of the model finds what a question asks for.

    Attributes:
        memo: what selection rules worked out once for these pages.
        graphs: passes of fixed shapes over them, on a GPU.
    """

    def __init__(
        self,
        attachment: Attachment,
        pages: Pages,
        documents: Sequence[ReadDocument],
        cuda_graphs: bool,
        trusted: Callable[[], Trusted],
    ) -> None:
        self._attachment, self.pages, self.documents = attachment, pages, tuple(documents)
        self.memo: dict[str, Any] = {}
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        self._trusted = trusted
        self.graphs = Graphs(attachment.shapes, attachment.window, pages, cuda_graphs)

    def begin(self) -> "Reading":
        """Say that a question reads these documents: until it lets go of what it gets, they stay where they are."""
        reading = Reading()
        self._readings.add(reading)
        return reading

    @property
    def held(self) -> bool:
        """Whether a question reads them, or waits to."""
        return len(self._readings) > 0

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, the sink not counted."""
        return sum(document.n_tokens for document in self.documents)

    def probe(self, cancelled: Cancelled) -> Probe:
        """Runs a text behind the sink alone; see `select.base.Probe`."""
        attachment, sink = self._attachment, self.pages.before(1)

        def run(ids: Sequence[int], asking: slice) -> Probed:
            with running():
                probed = self.graphs.probed(attachment.model, sink, ids)
            if probed is not None:
                return Probed(*([layer[:, asking] for layer in layers] for layers in probed))
            reader = Recording(SinkAndLocal(sink, 0))
            cache = ContextCache(len(attachment.shapes), reader, attachment.window, sink)
            prompt = torch.tensor([list(ids)], device=attachment.model.device)
            prefill(attachment.model, cache, prompt, attachment.window, cancelled)
            return Probed(
                [torch.cat(reader.queries[layer], 2)[0, :, asking] for layer in range(len(attachment.shapes))],
                [layer.tail_values.tokens[0, :, asking] for layer in cache.layers],
            )

        return run

    def question(self, prompt: Prompt, cancelled: Cancelled) -> Question:
        """What a selection rule may know of a question to these documents."""
        probe = self.probe(cancelled)

        def listen(passages: Sequence[torch.Tensor]) -> torch.Tensor:
            return likelihood(
                self._attachment, self.pages, prompt.listened, prompt.words, passages, cancelled, self.graphs
            )

        asking = slice(prompt.asking.start - prompt.told, prompt.asking.stop - prompt.told)
        return Question(
            prompt.ids[prompt.told :], asking, prompt.wording, prompt.empty, probe, listen, self._trusted, self.memo
        )


def assembled(sink: Pages, parts: Iterable[tuple[Document, ReadDocument, Pages]]) -> tuple[Pages, list[ReadDocument]]:
    """Documents from here and there as one sequence, without reading any of them again.

    Args:
        sink: pages that begin with the sink's.
        parts: each document as it will be called, as it was read, and the pages it lies in.

    Returns:
        The pages, in a lower tier where some of the parts are.
    """
    runs, documents, at = [Run(sink, 0, 1)], [], 1
    for document, read, pages in parts:
        first, many = read.start // PAGE, pages_for(read.n_tokens)
        runs.append(Run(pages, first, first + many))
        documents.append(ReadDocument(document, read.spans, at * PAGE, read.saved))
        at += many
    pages = stitch(runs)
    tiered = [run.pages for run in runs if isinstance(run.pages, TieredPages)]
    return tiered[0].over(pages) if tiered else pages, documents
