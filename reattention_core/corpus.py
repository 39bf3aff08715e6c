"""A corpus: documents that a model has read, open for questions and for edits."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reattention_core.answer import Answer, AnswerStream, finish
from reattention_core.cache.pages import Pages
from reattention_core.config import Generation, checked
from reattention_core.documents import Document, collect
from reattention_core.documents import Source as Readable
from reattention_core.editing import Changes, Plan, adding, refreshing, removing, reordering
from reattention_core.edition import Edition
from reattention_core.edits import carried_out, unchanged
from reattention_core.errors import EmptyPromptError, InvalidRequestError, UnreadableDocumentError
from reattention_core.finding import found
from reattention_core.memory import within_memory
from reattention_core.prefill import Cancelled
from reattention_core.progress import Progress
from reattention_core.prompts import Turn, build_prompt
from reattention_core.reading import How, Mode
from reattention_core.request import Request
from reattention_core.select import Consensus, Selector
from reattention_core.sources import ReadDocument, Source
from reattention_core.structured.structure import Structure
from reattention_core.unpicklable import Unpicklable

if TYPE_CHECKING:
    from reattention_core.engine import Engine
    from reattention_core.store.draft import Draft

Elsewhere = Callable[[Edition, int | None], Pages | None]
"""Gives the pages of an edition, which is so saved, in another place."""


class Corpus(Unpicklable):
    """A read corpus, open for questions and edits. Made by `Engine.ingest`, `Engine.open` and `Engine.join`.

    Questions never change it: each has a private tail over the shared pages, so any number may run one after another or
    from several threads (the model itself serves one at a time).

    Edits change the object in place, and the saved corpus if it has a name; only new and changed documents are read. A
    question that is being answered goes on over the documents it began with. Edits come one after another; one that fails
    changes nothing.

    Args:
        engine: whose model read it.
        name: under which it is saved, or None.
        pages: keys and values.
        documents: texts and where their tokens lie.
        mode: "independent" or "joint".
        skipped: files that could not be read.
        selector: the rule it was read by, which matters where documents are summed up.
        generation: that is saved under the name.

    Attributes:
        engine: whose model read it.
        generation: that is saved under the name, None without one.
        edition: the documents and pages as they are now; never changed, but replaced by an edit.
        skipped: files that could not be read and are not in it.
        used: when it was asked last, or made.
    """

    def __init__(
        self,
        engine: "Engine",
        name: str | None,
        pages: Pages,
        documents: Sequence[ReadDocument],
        mode: Mode,
        skipped: Sequence[UnreadableDocumentError] = (),
        selector: Selector | None = None,
        generation: int | None = None,
    ) -> None:
        self.engine, self.name, self.mode, self.generation = engine, name, mode, generation
        self.skipped = tuple(skipped)
        self._selector, self._editing = selector, threading.Lock()
        self.edition, self.used = self._edition(pages, documents), time.monotonic()
        engine.tally.opened(self)

    @classmethod
    def made(
        cls,
        engine: "Engine",
        name: str | None,
        how: How,
        pages: Pages,
        documents: Sequence[ReadDocument],
        draft: "Draft | None",
        skipped: Sequence[UnreadableDocumentError] = (),
    ) -> "Corpus":
        """A corpus of documents that were just read, published if there is a draft."""
        generation = None
        if draft is not None:
            manifest, documents = draft.publish(pages, documents)
            generation = manifest.generation
        return cls(engine, name, pages, documents, how.mode, skipped, how.selector, generation)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.documents)} documents, {self.n_tokens:,} tokens)"

    @property
    def documents(self) -> tuple[ReadDocument, ...]:
        """The documents in reading order, each with its text, id, source and metadata."""
        return self.edition.documents

    @property
    def pages(self) -> Pages:
        """Keys and values."""
        return self.edition.pages

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, the sink not counted."""
        return self.edition.n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the shared keys and values."""
        return self.pages.nbytes

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Turn] = (),
        system: str = "",
        strategy: str | Selector | None = None,
        schema: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Answer:
        """Answer a question from the documents.

        Args:
            question: what is asked.
            history: earlier (question, answer) turns, oldest first.
            system: an instruction on how to answer, which the model reads first; `consensus` chooses passages without it.
            strategy: a selection rule by name or instance; the engine's when left out.
            schema: JSON schema that the answer's text follows; stop strings then have no effect.
            generation: fields of `Generation`: max_new_tokens, temperature, top_p, stop, seed, timeout.

        Returns:
            The text, the passages it rests on and what it took.

        Raises:
            EmptyPromptError: the question is empty, or all documents were removed.
            ContextTooLongError: instruction, history, question and answer leave no room in the model's window.
            InvalidConfigError: a setting is unknown or not allowed, or the schema cannot be followed.
            IncompleteAnswerError: tokens ran out inside of JSON.
        """
        asked = self.stream(question, history=history, system=system, strategy=strategy, schema=schema, **generation)
        return finish(asked)

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Turn] = (),
        system: str = "",
        strategy: str | Selector | None = None,
        schema: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> AnswerStream:
        """Like `ask`, but gives pieces of text as they are drawn; the whole answer is in `.answer` afterwards."""
        engine, edition = self.engine, self._asked()
        defaults = {"max_new_tokens": engine.config.max_new_tokens, "stop": engine.config.stop}
        settings = checked(Generation, {**defaults, **generation})
        prompt = build_prompt(engine.tokens, engine.config, question, history, system)
        prompt.room(engine.window, settings.max_new_tokens)
        shape = engine.shape(Structure(schema=schema))
        request = Request(engine, prompt, settings, engine.selector(strategy), edition, shape)
        return request.stream()

    def find(self, question: str, k: int = 5, cancelled: Cancelled = lambda: False) -> list[Source]:
        """The passages that a question asks for, most evidence first, without an answer being written.

        They are ranked as `consensus` ranks them. A passage is a document, or one of a longer document's parts of about 256
        tokens.

        Args:
            question: what is asked.
            k: passages at most; there are fewer where fewer have any evidence.
            cancelled: asked between forward passes; True stops the search.

        Raises:
            EmptyPromptError: the question is empty, or all documents were removed.
            ContextTooLongError: it is longer than the model's window.
            InvalidRequestError: k is not at least 1.
            CancelledError: `cancelled` said so.
        """
        return found(self.engine, self._asked(), question, k, cancelled)

    def add(
        self,
        documents: Readable | Iterable[Readable],
        *,
        strict: bool = False,
        progress: bool | Progress = True,
        cancelled: Cancelled = lambda: False,
    ) -> Changes:
        """Read more documents, behind those that are there. What the corpus has already is not read again.

        Args:
            documents: as for `Engine.ingest`.
            strict: raise on the first unreadable file instead of leaving it out.
            progress: as for `Engine.ingest`.
            cancelled: asked between forward passes; True stops the edit, and nothing changes.

        Raises:
            InvalidRequestError: an id is another document's, or the corpus was read with `joint`.
            EmptyPromptError: there is nothing to read.
            CapacityError: it would not fit the memory.
        """
        new, skipped = collect(documents, strict=strict)
        return self._edit(lambda old: adding(old, new), skipped, progress, cancelled)

    def refresh(
        self,
        documents: Readable | Iterable[Readable],
        *,
        drop: bool = False,
        strict: bool = False,
        progress: bool | Progress = True,
        cancelled: Cancelled = lambda: False,
    ) -> Changes:
        """Bring the corpus up to date: what changed is read again in its place, what is new behind the rest.

        A document is known by its id; a file, whose id is made from its content, by its source. Documents with the same
        title and text are not read again.

        Args:
            documents: as they are now; as for `Engine.ingest`.
            drop: remove the documents that are not among them.
            strict: as for `add`.
            progress: as for `add`.
            cancelled: as for `add`.

        Raises:
            InvalidRequestError: the corpus was read with `joint`.
            EmptyPromptError: there is nothing to read.
            CapacityError: it would not fit the memory.
        """
        new, skipped = collect(documents, strict=strict)
        return self._edit(lambda old: refreshing(old, new, drop=drop), skipped, progress, cancelled)

    def remove(self, ids: str | Iterable[str]) -> Changes:
        """Take documents out of the corpus.

        Args:
            ids: of documents; one, or several.

        Raises:
            InvalidRequestError: there is no document of an id, or the corpus was read with `joint`.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        return self._edit(lambda old: removing(old, wanted))

    def reorder(self, ids: Iterable[str]) -> Changes:
        """Put documents in the order of their ids; those that are not named follow in the order they have.

        Raises:
            InvalidRequestError: there is no document of an id, one is named twice, or the corpus was read with `joint`.
        """
        wanted = list(ids)
        return self._edit(lambda old: reordering(old, wanted))

    def _edit(
        self,
        planned: Callable[[Sequence[Document]], Plan],
        skipped: Sequence[UnreadableDocumentError] = (),
        progress: bool | Progress = False,
        cancelled: Cancelled = lambda: False,
    ) -> Changes:
        """Carry out a plan, and put the new edition in place of the old one."""
        if self.mode == "joint":
            raise InvalidRequestError(
                "this corpus was read with mode='joint', where every document was read in the light of the earlier ones: "
                "it cannot be edited; ingest the documents anew, or with mode='independent'"
            )
        with self._editing:
            plan = planned([read.document for read in self.documents])
            if not unchanged(self, plan):
                pages, documents, self.generation = carried_out(
                    self, plan, How("independent", self.rule(), progress, cancelled)
                )
                self.edition = self._edition(pages, documents)
            return replace(plan.changes, skipped=tuple(skipped))

    def promote(self) -> bool:
        """Go up to a higher tier that has room now; nothing else goes down for it, and the answers stay the same.

        Returns:
            Whether it went up: False where no tier above has room, or while a question or an edit reads the corpus.

        Raises:
            CapacityError: memory ran out in spite of what was free.
        """
        with self.engine.busy(), within_memory():
            return self.move(self.engine.tiers.higher)

    def move(self, elsewhere: Elsewhere) -> bool:
        """Put the same pages elsewhere; False, with nothing changed, while a question or an edit reads them.

        Args:
            elsewhere: gives the new pages for an edition and its generation on disk, or None to leave them.
        """
        if not self._editing.acquire(blocking=False):
            return False
        try:
            return not self.edition.held and self.moved(elsewhere)
        finally:
            self._editing.release()

    def moved(self, elsewhere: Elsewhere) -> bool:
        """`move` for who may change the corpus, even while a question reads where the pages were."""
        pages = elsewhere(self.edition, self.generation)
        if pages is not None:
            self.edition = self._edition(pages, self.documents)
        return pages is not None

    def _edition(self, pages: Pages, documents: Sequence[ReadDocument]) -> Edition:
        engine = self.engine
        return Edition(engine.attachment, pages, documents, engine.config.cuda_graphs, lambda: engine.trusted)

    def rule(self) -> Selector:
        """The rule that more documents are read by: it must sum them up as the others were.

        Raises:
            InvalidRequestError: it was one of your own, in another process.
        """
        size, selector = self.pages.summary_size, self._selector
        if selector is None and size:
            raise InvalidRequestError(
                "this corpus was read by a rule of your own that sums up chunks of documents: to add more, ingest it anew with it"
            )
        return selector or Consensus()

    def _asked(self) -> Edition:
        """The edition that a question now reads."""
        edition = self.edition
        if not edition.documents:
            raise EmptyPromptError("all documents of this corpus were removed: add some before asking")
        self.used = time.monotonic()
        return edition
