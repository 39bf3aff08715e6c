"""One prompt on its way through the model: what the worker thread does and what is known when it is done."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING

from reattention_core.answer import Answer, AnswerStream, Usage
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.config import Generation
from reattention_core.errors import AnswerTimeoutError, CancelledError, CapacityError
from reattention_core.evidence import Evidence
from reattention_core.generate import Worker, generate
from reattention_core.memory import within_memory
from reattention_core.prefill import Cancelled
from reattention_core.prompts import Prompt
from reattention_core.select import Context, Reader, Selector
from reattention_core.sources import Source, passages
from reattention_core.structured.structure import Calls, Shape
from reattention_core.structured.tools import ToolCall

if TYPE_CHECKING:
    from reattention_core.edition import Edition
    from reattention_core.engine import Engine

logger = logging.getLogger(__name__)

ROOM = 128
"""The tail's room is a multiple of this many tokens, so that questions of about the same length share a recorded pass."""


class Request:
    """A prompt, with a corpus under it or without.

    Args:
        engine: whose model runs.
        prompt: token ids, and which of them ask.
        settings: how tokens are drawn.
        selector: what may be seen.
        corpus: the documents as they are when the question is put, or None.
        shape: what the answer must be; None for any text.
    """

    def __init__(
        self,
        engine: "Engine",
        prompt: Prompt,
        settings: Generation,
        selector: Selector,
        corpus: "Edition | None" = None,
        shape: Shape | None = None,
    ) -> None:
        if shape is not None and shape.with_schema:
            # JSON says itself where it ends, and what a stop string is in text may be a part of it.
            settings = settings.model_copy(update={"stop": ()})
        self._engine, self._prompt, self._settings = engine, prompt, settings
        self._selector, self._corpus, self._shape = selector, corpus, shape
        self._reading = None if corpus is None else corpus.begin()
        self._calls: list[ToolCall] = []
        self._known = 0
        self._stop = threading.Event()

    def stream(self) -> AnswerStream:
        """The answer to iterate over; the model starts with the first piece that is asked for."""
        return AnswerStream(self.pieces(), self._stop.set)

    def pieces(self) -> Iterator[str | Answer]:
        """Recall, read and write in a worker thread: pieces of text first, the whole answer last."""
        began = time.perf_counter()
        text, first = [], 0.0
        with closing(Worker(self._in_time, self._stop).pieces()) as worker:
            for piece in worker:
                first = first or time.perf_counter() - began
                text.append(piece)
                yield piece
        seconds, (read, cached) = time.perf_counter() - began, self._tokens()
        yield Answer(
            text="".join(text),
            sources=self._sources(),
            evidence=self._evidence(),
            finish_reason=self._reason,
            tool_calls=self._calls,
            usage=Usage(
                prompt_tokens=read,
                cached_tokens=cached,
                window_tokens=self._cache.widest,
                completion_tokens=self._drawn,
                recall_seconds=self._recalled - self._started,
                first_token_seconds=first or seconds,
                seconds=seconds,
                tail_bytes=self._cache.nbytes,
            ),
        )

    def _in_time(self, emit: Callable[[str], None], cancelled: Cancelled) -> None:
        """The work, given up when its time is over, and counted."""
        tally, limit, began, first = self._engine.tally, self._settings.timeout, time.perf_counter(), 0.0

        def timed(piece: str) -> None:
            nonlocal first
            first = first or time.perf_counter() - began
            emit(piece)

        try:
            self._work(timed, lambda: cancelled() or (limit is not None and time.perf_counter() > began + limit))
            seconds, read, cached = time.perf_counter() - began, len(self._prompt.ids) - self._known, self._tokens()[1]
            tally.add(
                answered=1, seconds=seconds, first=first or seconds, read=read, cached=cached, written=self._drawn
            )
        except CancelledError as error:
            tally.add(**{"cancelled" if cancelled() else "late": 1})
            if cancelled():
                raise
            raise AnswerTimeoutError(
                f"the answer took longer than its timeout of {limit:g} s: allow more, or fewer tokens"
            ) from error
        except BaseException:
            tally.add(failed=1)
            raise
        finally:
            self._reading = None

    def _tokens(self) -> tuple[int, int]:
        """Tokens that were run before the first one was drawn, and tokens that were taken from what was read before."""
        cached = self._known if self._corpus is None else self._corpus.n_tokens
        return len(self._prompt.ids) - self._known, cached

    def _work(self, emit: Callable[[str], None], cancelled: Cancelled) -> None:
        """The whole way, in the worker thread: one request at a time has the model."""
        engine, corpus = self._engine, self._corpus
        with engine.busy(cancelled) as between:
            attachment, self._started = engine.attachment, time.perf_counter()
            context = Context(
                window=attachment.window,
                tail=len(self._prompt.ids) + self._settings.max_new_tokens,
                scaling=attachment.scaling,
                rotations=attachment.rotations,
            )
            if corpus is not None:
                context.pages = corpus.pages
                context.question = corpus.question(self._prompt, cancelled)
            self._reader: Reader = self._selector.reader(context)
            self._recalled = time.perf_counter()
            room = -(-context.tail // ROOM) * ROOM
            pages = context.pages if self._reader.pages is None else self._reader.pages
            self._cache = ContextCache(len(attachment.shapes), self._reader, attachment.window, pages, room)
            calls = None if self._shape is None else Calls(self._shape, emit)
            with nullcontext() if corpus is not None else self._prefix():
                self._drawn, self._reason = generate(
                    attachment.model,
                    engine.tokenizer,
                    self._cache,
                    self._prompt.ids,
                    self._settings,
                    self._reader.chunk,
                    calls or emit,
                    cancelled,
                    trim=corpus is not None,
                    graphs=corpus.graphs if corpus is not None else None,
                    constraint=None if self._shape is None else self._shape.constraint,
                    # Whoever goes first may bring other pages in the place of these.
                    between=between if pages is context.pages else None,
                )
            if calls is not None:
                self._calls, self._reason = calls.end(self._reason)

    @contextmanager
    def _prefix(self) -> Iterator[None]:
        """Inside, the cache holds what is known of the prompt's beginning; afterwards what was read, if cancelled too, is known."""
        tree, reader, ids = self._engine.prefixes, self._reader, self._prompt.ids
        if reader.way:
            self._known = tree.take(reader.way, ids, reader.step, self._cache)
        try:
            yield
        except CancelledError:
            self._remember()
            raise
        self._remember()

    def _remember(self) -> None:
        tree, reader = self._engine.prefixes, self._reader
        try:
            with within_memory():
                if reader.way:
                    tree.keep(reader.way, self._prompt.ids, reader.step, self._cache)
        except CapacityError as error:
            # The answer does not depend on it, and what comes next may need the memory.
            logger.warning("forgetting the beginnings of prompts: %s", error)
            tree.release()

    def _sources(self) -> list[Source]:
        evidence = self._reader.evidence
        if self._corpus is None or evidence is None:
            return []
        return passages(self._corpus.documents, self._reader.cited().tolist(), evidence.tolist())

    def _evidence(self) -> Evidence | None:
        corpus, reader = self._corpus, self._reader
        if corpus is None:
            return None
        return Evidence(
            question=self._prompt.question,
            documents=corpus.documents,
            pages=Evidence.shares(reader.evidence, len(corpus.pages.filled)),
            read=reader.cited().tolist(),
            strategy=self._selector.name,
            model=self._engine.name,
            corpus_bytes=corpus.pages.nbytes,
        )
