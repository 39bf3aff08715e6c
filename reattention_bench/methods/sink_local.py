"""StreamingLLM's rule as a selector: the first tokens and the newest ones, whatever is asked (arXiv 2309.17453)."""

import torch
from pydantic import Field

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.errors import ContextTooLongError
from reattention_core.select import Context, Reader, Selection, Selector


class SinkLocal(Selector):
    """The published rule; its default is to fill the model's window.

    Attributes:
        sink: first tokens, always seen.
        window: tokens seen in all, sink, question and answer included; None for the model's window.
        chunk: tokens of a prompt that are read at a time.
    """

    name = "sink-local"

    sink: int = Field(default=4, ge=0)
    window: int | None = Field(default=None, ge=1)
    chunk: int = Field(default=256, ge=1)

    def reader(self, context: Context) -> Reader:
        """A reader for one request.

        Raises:
            ContextTooLongError: the question does not fit beside the sink.
        """
        limit = min(context.window, self.window or context.window)
        chunk = min(self.chunk, max(1, limit // 4))
        # With a corpus the whole tail stays in the window; a text alone is itself the tail and moves through it.
        needed = self.sink + (context.tail if context.pages is not None else chunk)
        if needed >= limit:
            raise ContextTooLongError(
                f"sink-local has a window of {limit} tokens, and sink, question and answer take {needed}: shorten the question",
                n_tokens=needed,
                limit=limit,
            )
        reader = _Reader(self.sink, limit, context)
        reader.chunk = chunk
        return reader


class _Reader(Reader):
    def __init__(self, sink: int, limit: int, context: Context) -> None:
        self._sink, self._limit = sink, limit
        if context.pages is not None:
            addresses = context.pages.addresses
            recent = addresses[sink:][-(limit - sink - context.tail) :]
            self._fixed: Selection | None = Selection(torch.cat([addresses[:sink], recent]))
        else:
            self._fixed = None

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        if self._fixed is not None:
            return self._fixed
        first = layer.n_tail - (self._limit - self._sink)
        if first <= self._sink:
            return Selection(torch.empty(0, dtype=torch.int64, device=query.device))
        return Selection(torch.arange(self._sink, device=query.device), first)
