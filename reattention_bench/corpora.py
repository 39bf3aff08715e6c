"""Reads a group's documents once, and the documents that differ in a case anew in their places; knows no task.

Documents read alone (`independent`) do not depend on each other, so the pages of one can be written over. A case's
document is read as a small corpus of its own and its pages are copied over the original's, which are put back afterwards.
The needles displace text, so it always fits (see `haystack`). Streamed documents (`joint`) depend on all before them:
there the whole corpus is read for each case.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from reattention_bench.case import Case, Group
from reattention_core.cache.pages import PAGE, Pages, pages_for
from reattention_core.cache.stitched import underlying
from reattention_core.corpus import Corpus
from reattention_core.engine import Engine
from reattention_core.errors import ReAttentionError
from reattention_core.progress import Progress
from reattention_core.select import Selector
from reattention_core.sources import ReadDocument
from reattention_core.tokens import NO_SPAN

Mode = Literal["independent", "joint"]


class Corpora:
    """A group's documents as the engine has read them.

    Args:
        engine: attached.
        group: documents and cases.
        mode: of ingest.
        rules: of all methods that will ask; one that sums up chunks decides how the others' documents are read too.
        progress: called with the tokens read and the tokens there are while documents are read.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        mode: Mode,
        rules: Sequence[Selector],
        progress: Progress = lambda done, total: None,
    ) -> None:
        self._engine, self._group, self._mode, self._progress = engine, group, mode, progress
        self._summing = next((rule for rule in rules if rule.summary_size), None)
        self._read: dict[str, tuple[Corpus, float]] = {}

    def key(self, rule: Selector) -> str:
        """Rules with the same key read the same pages."""
        if self._mode == "joint" or rule.summary_size:
            return f"{type(rule).__name__} {rule!r}"
        return "plain" if self._summing is None else self.key(self._summing)

    @contextmanager
    def of(self, case: Case, rule: Selector) -> Iterator[tuple[Corpus, float]]:
        """The documents as they read in a case, and the seconds that reading the group's took.

        Raises:
            ReAttentionError: they could not be read.
        """
        if self._mode == "joint" and case.changes:
            self._read.clear()  # two corpora may not fit
            yield self._ingest(self._group.of(case), rule)
            return
        key = self.key(rule)
        if key not in self._read:
            self._read[key] = self._ingest(self._group.documents, rule)
        corpus, seconds = self._read[key]
        with changed(self._engine, corpus, case, self._strategy(rule)) as own:
            yield own, seconds

    def _strategy(self, rule: Selector) -> Selector | None:
        if self._mode == "joint" or rule.summary_size:
            return rule
        return self._summing

    def _ingest(self, documents: Sequence[object], rule: Selector) -> tuple[Corpus, float]:
        began = time.perf_counter()
        corpus = self._engine.ingest(
            documents,  # type: ignore[arg-type]
            mode=self._mode,
            strategy=self._strategy(rule),
            progress=self._progress,
        )
        return corpus, time.perf_counter() - began


@contextmanager
def changed(engine: Engine, corpus: Corpus, case: Case, strategy: Selector | None = None) -> Iterator[Corpus]:
    """A corpus in which a case's documents stand in their places; the original is as it was afterwards.

    Args:
        engine: whose corpus it is.
        corpus: read with `independent`.
        case: its changed documents have at most as many tokens as those they replace.
        strategy: by which the corpus was read.

    Raises:
        ReAttentionError: a document is longer than the one it replaces, or the corpus cannot be written over.
    """
    if not case.changes:
        yield corpus
        return
    numbers = sorted(case.changes)
    small = engine.ingest([case.changes[n] for n in numbers], strategy=strategy, progress=False)
    placed, documents = corpus.pages, list(corpus.documents)
    pages = placed if placed.below is None else placed.below
    if pages.mapped or len(underlying(pages)) > 1:
        raise ReAttentionError("the corpus lies on disk, or in several pieces: give the engine more host_bytes")
    filled, undo = pages.filled.clone(), []
    for number, new in zip(numbers, small.documents, strict=True):
        old = documents[number]
        if new.n_tokens > old.n_tokens:
            raise ReAttentionError(f"document {number} has {new.n_tokens} tokens, there is room for {old.n_tokens}")
        # Slots that stay empty belong to it still, though they hold no text: a rule may cite their page.
        empty = torch.tensor([NO_SPAN] * (old.n_tokens - new.n_tokens), dtype=torch.int32).view(-1, 2)
        documents[number] = ReadDocument(new.document, torch.cat([new.spans, empty]), old.start)
        at, own = _pages_of(old), _pages_of(new)
        over = slice(at.start, at.start + own.stop - own.start)
        filled[at] = 0
        filled[over] = small.pages.filled[own].to(filled.device)
        stores = [(pages.keys, small.pages.keys, over, own), (pages.values, small.pages.values, over, own)]
        if pages.summaries:
            to, source = _chunks(pages, over), _chunks(small.pages, own)
            stores.append((pages.summaries, small.pages.summaries, to, source))
        for target, made, to, source in stores:
            for layer, tensor in enumerate(target):
                undo.append((tensor, to, tensor[:, to].clone()))
                tensor[:, to] = made[layer][:, source].to(tensor.device)
    try:
        view = Pages(pages.keys, pages.values, filled, pages.first, pages.summaries, pages.summary_size)
        view.pinned = pages.pinned
        with engine.busy():
            view = view if placed.below is None else engine.tiers.below(view)
        yield Corpus(engine, None, view, documents, corpus.mode)
    finally:
        for tensor, place, before in undo:
            tensor[:, place] = before


def _pages_of(document: ReadDocument) -> slice:
    first = document.start // PAGE
    return slice(first, first + pages_for(document.n_tokens))


def _chunks(pages: Pages, part: slice) -> slice:
    """The chunks of some pages of one document."""
    own: torch.Tensor = pages.chunks(pages.summary_size)[part]
    return slice(int(own[0]), int(own[-1]) + 1)
