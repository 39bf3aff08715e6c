"""Readings that choose nothing: everything, or the sink and what lies near; they know no scores."""

from dataclasses import replace

import torch

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.select.base import Reader, Selection


class Everything(Reader):
    """Ordinary attention over all tokens: right while they fit the model's window."""

    way = "everything"

    def __init__(self) -> None:
        self._selection: Selection | None = None

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """All pages and the whole tail."""
        if self._selection is None:
            pages = layer.pages
            if pages is None:
                self._selection = Selection(torch.empty(0, dtype=torch.int64, device=query.device))
            else:
                self._selection = Selection.of_pages(pages, torch.arange(pages.n_pages, device=query.device))
        return self._selection


class SinkAndLocal(Reader):
    """The first page and the newest tokens: how one document is read by itself (StreamingLLM, arXiv 2309.17453).

    Args:
        sink: the page that every token sees, positioned before the document.
        before: tokens before the chunk being run that it sees besides.
    """

    def __init__(self, sink: Pages, before: int) -> None:
        self._before = before
        self._whole = self._selection = Selection.of_pages(sink, torch.arange(sink.n_pages, device=sink.filled.device))

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """The sink, then the tail's newest tokens."""
        tail_from = max(0, layer.n_tail - query.shape[2] - self._before)
        if tail_from != self._selection.tail_from:
            self._selection = replace(self._whole, tail_from=tail_from)
        return self._selection

    def select_local(self, layer: ContextLayer, query: torch.Tensor, width: int) -> Selection:
        """The same: the sink stands right before the document, and the layer's own width is applied on top."""
        return self.select(layer, query)


class Settled(Reader):
    """One selection, the same for all layers and all tokens.

    Args:
        selection: what every layer reads before its tail.
        evidence: [P] float32, how much each page was asked for, if the rule knows; the answer's sources come from it.

    Attributes:
        selection: the same.
    """

    settled = True

    def __init__(self, selection: Selection, evidence: torch.Tensor | None = None) -> None:
        self.selection, self.evidence = selection, evidence

    def cited(self, most: int = 5) -> torch.Tensor:
        """Of the pages that are read, those with the most evidence, [n] int64, rising."""
        if self.evidence is None:
            return super().cited(most)
        read: torch.Tensor = (self.selection.addresses // PAGE).unique()
        read = read[self.evidence[read] > 0]
        best = read[self.evidence[read].topk(min(most, len(read))).indices]
        return best.sort().values

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """The selection."""
        return self.selection

    def select_local(self, layer: ContextLayer, query: torch.Tensor, width: int) -> Selection:
        """The selection; the layer's own width is applied on top."""
        return self.selection


class Recording(Reader):
    """Reads as another reader does and keeps every layer's un-rotated queries.

    Args:
        inner: decides what is seen.

    Attributes:
        queries: by layer, the chunks' queries [B, H, Q, D] in order.
    """

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self.queries: dict[int, list[torch.Tensor]] = {}

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """What the other reader selects."""
        self.queries.setdefault(layer.index, []).append(query)
        return self._inner.select(layer, query)

    def select_local(self, layer: ContextLayer, query: torch.Tensor, width: int) -> Selection:
        """What the other reader selects."""
        self.queries.setdefault(layer.index, []).append(query)
        return self._inner.select_local(layer, query, width)
