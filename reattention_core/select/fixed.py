"""Readings that choose nothing: everything, or the sink and what lies near; they know no scores."""

import torch

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.select.base import Reader, Selection


class Everything(Reader):
    """Ordinary attention over all tokens: right while they fit the model's window."""

    def __init__(self) -> None:
        self._selection: Selection | None = None

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """All pages and the whole tail."""
        if self._selection is None:
            addresses = torch.empty(0, dtype=torch.int64, device=query.device)
            self._selection = Selection(addresses if layer.pages is None else layer.pages.addresses)
        return self._selection


class SinkAndLocal(Reader):
    """The first page and the newest tokens: how one document is read by itself (StreamingLLM, arXiv 2309.17453).

    Args:
        sink: [n] int64, addresses that every token sees, positioned before the document.
        before: tokens before the chunk being run that it sees besides.
    """

    def __init__(self, sink: torch.Tensor, before: int) -> None:
        self._sink, self._before = sink, before
        self._selection = Selection(sink)

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """The sink, then the tail's newest tokens."""
        tail_from = max(0, layer.n_tail - query.shape[2] - self._before)
        if tail_from != self._selection.tail_from:
            self._selection = Selection(self._sink, tail_from)
        return self._selection

    def select_local(self, layer: ContextLayer, query: torch.Tensor, width: int) -> Selection:
        """The same: the sink stands right before the document, and the layer's own width is applied on top."""
        return self.select(layer, query)


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
