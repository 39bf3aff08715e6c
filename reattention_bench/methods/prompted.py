"""Ordinary prompts inside the window: nothing, the gold documents, both ends of the corpus, or the passages a retriever finds.

The same attached model reads them with exact attention (the attach self-test is what makes that the stock model), behind the
sink that stands before the engine's documents too, in the same form, with the same limit on the answer as every other method.
"""

from collections.abc import Sequence
from typing import Any

from reattention_bench.case import Case
from reattention_bench.likelihood import read
from reattention_bench.methods.base import Answered, Lab, Method, asking, context_text
from reattention_bench.methods.retrieval import Bm25, Embeddings, Ranker, passages
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.config import Generation
from reattention_core.errors import ContextTooLongError, InvalidRequestError
from reattention_core.generate import generate
from reattention_core.select import Consensus
from reattention_core.select.fixed import Everything


def complete(lab: Lab, ids: Sequence[int]) -> Answered:
    """Continue a prompt that fits the window.

    Raises:
        ContextTooLongError: it does not.
    """
    engine, task = lab.engine, lab.task
    if len(ids) + task.max_new_tokens > engine.window:
        raise ContextTooLongError(
            f"the prompt has {len(ids)} tokens and the answer up to {task.max_new_tokens}, the model's window {engine.window}",
            n_tokens=len(ids) + task.max_new_tokens,
            limit=engine.window,
        )
    settings = Generation(max_new_tokens=task.max_new_tokens, stop=task.stop)
    cache = ContextCache(len(engine.attachment.shapes), Everything(), engine.window)
    pieces: list[str] = []
    with engine.busy():
        generate(
            engine.attachment.model,
            engine.tokenizer,
            cache,
            list(ids),
            settings,
            1024,
            pieces.append,
            lambda: False,
            trim=True,
        )
    return Answered("".join(pieces), len(ids))


def behind_sink(lab: Lab, text: str) -> list[int]:
    """A text's tokens behind the engine's sink."""
    return [*lab.engine.sink, *lab.engine.tokens.encode(text).ids]


class Closed(Method):
    """The question alone."""

    name = "closed"
    summary = "the question without any document"

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Ask without documents."""
        return complete(lab, lab.engine.tokens.encode(asking(lab, case)).ids)


class Oracle(Method):
    """The documents that hold the evidence and no other: the ceiling of every retriever."""

    name = "oracle"
    summary = "the gold documents alone"

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Ask over the gold documents."""
        gold = [document for document in lab.group.of(case) if document.id in case.gold]
        return complete(lab, behind_sink(lab, context_text(lab, gold) + asking(lab, case)))


class Truncate(Method):
    """The first and the last tokens of the corpus, half of the window each (LongBench's convention, arXiv 2308.14508)."""

    name = "truncate"
    summary = "both ends of the corpus, as much as the window holds"
    reads = True

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Ask over both ends, or read the newest tokens alone."""
        engine = lab.engine
        if lab.task.reads:
            ids = case.ids[-engine.window :]
            likelihood = read(engine, Consensus(), ids, min(case.last, len(ids) - 1))
            return Answered(repr(-likelihood.mean), likelihood.widest, note="the newest tokens alone")
        question = engine.tokens.encode(asking(lab, case)).ids
        room = engine.window - len(engine.sink) - len(question) - lab.task.max_new_tokens
        text = context_text(lab, lab.group.of(case))
        generous = 32 * room  # characters: tokens are seldom longer, and a corpus of millions need not be encoded
        if len(text) <= 2 * generous:
            ids = engine.tokens.encode(text).ids
            kept = ids if len(ids) <= room else ids[: room // 2] + ids[len(ids) - (room - room // 2) :]
        else:
            head, tail = engine.tokens.encode(text[:generous]).ids, engine.tokens.encode(text[-generous:]).ids
            kept = head[: room // 2] + tail[len(tail) - (room - room // 2) :]
        return complete(lab, [*engine.sink, *kept, *question])


class Retrieval(Method):
    """Passages by a retriever, best first, as a chain of retriever and model reads them."""

    allowed = ("k",)
    ranker: Ranker

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__({"k": 3, **parameters})
        self.k = self.parameters["k"]
        if not isinstance(self.k, int) or self.k < 1:
            raise InvalidRequestError(f"{self.name}: k is a number of passages from 1 on, got {self.k!r}")

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Rank all passages, and ask over the best."""
        documents = lab.group.of(case)
        found = passages(documents)
        order = self.ranker.order([passage.whole for passage in found], case.query)
        ranked = list(dict.fromkeys(found[i].document_id for i in order))[:10]
        text = lab.group.prompt([found[i].whole for i in order[: self.k]])
        answered = complete(lab, behind_sink(lab, text + asking(lab, case)))
        return Answered(answered.text, answered.tokens, ranked)


class ByBm25(Retrieval):
    """BM25 by bm25s."""

    name = "bm25"
    summary = "the k best passages by BM25 (k=3)"

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.ranker = Bm25.shared()


class ByEmbeddings(Retrieval):
    """all-MiniLM-L6-v2 and an exact search."""

    name = "embeddings"
    summary = "the k best passages by all-MiniLM-L6-v2 and exact search (k=3)"

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.ranker: Embeddings = Embeddings.shared()

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Rank all passages, and ask over the best."""
        self.ranker.learn(lab.group)
        return super().answer(lab, case)
