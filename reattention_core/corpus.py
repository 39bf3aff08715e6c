"""Documents that a model has read, and questions to them; knows no files and no disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from reattention_core.answer import Answer, AnswerStream, finish
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.config import Generation, checked
from reattention_core.errors import ContextTooLongError, InvalidRequestError, UnreadableDocumentError
from reattention_core.graphs import Graphs
from reattention_core.prefill import Cancelled, prefill, running
from reattention_core.prompts import Prompt, Turn, build_prompt
from reattention_core.request import Request
from reattention_core.select import Consensus, Selector
from reattention_core.select.base import Question
from reattention_core.select.fixed import Recording, SinkAndLocal
from reattention_core.sources import ReadDocument, Source, passages
from reattention_core.structured.structure import Structure

if TYPE_CHECKING:
    from reattention_core.engine import Engine


class Corpus:
    """A read corpus, open for questions. Made by `Engine.ingest` and `Engine.open`.

    Questions never change it: each has a private tail over the shared pages, so any number may run one after another or
    from several threads (the model itself serves one at a time).

    Args:
        engine: whose model read it.
        name: under which it is saved, or None.
        pages: keys and values.
        documents: texts and where their tokens lie.
        mode: "independent" or "joint".

    Attributes:
        memo: what selection rules worked out once for this corpus.
        graphs: passes over it that were recorded, on a GPU.
        skipped: files that could not be read and are not in it.
    """

    def __init__(
        self,
        engine: "Engine",
        name: str | None,
        pages: Pages,
        documents: Sequence[ReadDocument],
        mode: str,
        skipped: Sequence[UnreadableDocumentError] = (),
    ) -> None:
        self._engine, self.name, self.pages, self.mode = engine, name, pages, mode
        self.documents, self.skipped = tuple(documents), tuple(skipped)
        self.memo: dict[str, list[torch.Tensor]] = {}
        attachment = engine.attachment
        self.graphs = Graphs(attachment.shapes, attachment.window, pages, engine.config.cuda_graphs)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self.documents)} documents, {self.n_tokens:,} tokens)"

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, the sink not counted."""
        return sum(document.n_tokens for document in self.documents)

    @property
    def nbytes(self) -> int:
        """Bytes of the shared keys and values."""
        return self.pages.nbytes

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Turn] = (),
        strategy: str | Selector | None = None,
        schema: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> Answer:
        """Answer a question from the documents.

        Args:
            question: what is asked.
            history: earlier (question, answer) turns, oldest first.
            strategy: a selection rule by name or instance; the engine's when left out.
            schema: JSON schema that the answer's text follows; stop strings then have no effect.
            generation: fields of `Generation`: max_new_tokens, temperature, top_p, stop, seed.

        Returns:
            The text, the passages it rests on and what it took.

        Raises:
            EmptyPromptError: the question is empty.
            ContextTooLongError: question, history and answer leave no room in the model's window.
            InvalidConfigError: a setting is unknown or not allowed, or the schema cannot be followed.
            IncompleteAnswerError: tokens ran out inside of JSON.
        """
        return finish(self.stream(question, history=history, strategy=strategy, schema=schema, **generation))

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Turn] = (),
        strategy: str | Selector | None = None,
        schema: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> AnswerStream:
        """Like `ask`, but gives pieces of text as they are drawn; the whole answer is in `.answer` afterwards."""
        engine = self._engine
        defaults = {"max_new_tokens": engine.config.max_new_tokens, "stop": engine.config.stop}
        settings = checked(Generation, {**defaults, **generation})
        prompt = build_prompt(engine.tokens, engine.config, question, history)
        reading = len(prompt.ids) + 2 * PAGE  # the sink and at least one page must fit beside the question
        needed = reading + settings.max_new_tokens
        if needed > engine.window:
            raise ContextTooLongError(
                f"question and history take {reading} tokens (with the sink and one page of documents) and the answer may take "
                f"{settings.max_new_tokens}, more than the model's window of {engine.window}: ask a shorter question or lower "
                "max_new_tokens",
                n_tokens=needed,
                limit=engine.window,
            )
        shape = engine.shape(Structure(schema=schema))
        request = Request(engine, prompt, settings, engine.selector(strategy), self, shape)
        return request.stream()

    def find(self, question: str, k: int = 5, cancelled: Cancelled = lambda: False) -> list[Source]:
        """The passages that a question asks for, most evidence first, without an answer being written.

        Evidence is that of `consensus`. A passage is a page that has some, with the page before and after it, and with other
        such pages that adjoin.

        Args:
            question: what is asked.
            k: passages at most; there are fewer where fewer pages have any evidence.
            cancelled: asked between forward passes; True stops the search.

        Raises:
            EmptyPromptError: the question is empty.
            ContextTooLongError: it is longer than the model's window.
            InvalidRequestError: k is not at least 1.
            CancelledError: `cancelled` said so.
        """
        if k < 1:
            raise InvalidRequestError(f"k is the number of passages, at least 1, got {k}")
        engine = self._engine
        prompt = build_prompt(engine.tokens, engine.config, question)
        attachment, needed = engine.attachment, len(prompt.ids) + PAGE
        if needed > attachment.window:
            raise ContextTooLongError(
                f"the question takes {needed} tokens (with the sink), more than the model's window of {attachment.window}: "
                "ask a shorter one",
                n_tokens=needed,
                limit=attachment.window,
            )
        with engine.busy(cancelled):
            asked = self.question(prompt, cancelled)
            evidence = Consensus.for_window(attachment.window).evidence(self.pages, asked, attachment.scaling)
        order, shares = evidence.argsort(descending=True).tolist(), evidence.tolist()
        best = [page for page in order if shares[page] > 0]
        last, found = self.pages.n_pages - 1, list[Source]()
        # Neighbours become one passage, so that more pages may be needed than passages.
        for many in range(k, min(len(best), 8 * k) + 1):
            pages = sorted({min(max(page + step, 0), last) for page in best[:many] for step in (-1, 0, 1)})
            found = passages(self.documents, pages, shares)
            if len(found) >= k:
                break
        return found[:k]

    def probe(self, cancelled: Cancelled) -> Callable[[Sequence[int], slice], list[torch.Tensor]]:
        """Runs a text behind the sink alone; see `select.base.Probe`."""
        attachment, sink = self._engine.attachment, self.pages.before(1)

        def run(ids: Sequence[int], asking: slice) -> list[torch.Tensor]:
            with running():
                queries = self.graphs.queries(attachment.model, sink, ids)
            if queries is not None:
                return [query[0, :, asking] for query in queries]
            reader = Recording(SinkAndLocal(sink, 0))
            cache = ContextCache(len(attachment.shapes), reader, attachment.window, sink)
            prompt = torch.tensor([list(ids)], device=attachment.model.device)
            prefill(attachment.model, cache, prompt, attachment.window, cancelled)
            return [torch.cat(reader.queries[layer], 2)[0, :, asking] for layer in range(len(attachment.shapes))]

        return run

    def question(self, prompt: Prompt, cancelled: Cancelled) -> Question:
        """What a selection rule may know of a question to this corpus."""
        return Question(prompt.ids, prompt.asking, prompt.empty, self.probe(cancelled), self.memo)
