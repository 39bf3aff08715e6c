"""The passages of a corpus that a question asks for, without an answer; knows no names and no edits."""

from typing import TYPE_CHECKING

from reattention_core.cache.pages import PAGE
from reattention_core.edition import Edition
from reattention_core.errors import InvalidRequestError
from reattention_core.prefill import Cancelled
from reattention_core.prompts import build_prompt
from reattention_core.select import Consensus
from reattention_core.sources import Source, passages

if TYPE_CHECKING:
    from reattention_core.engine import Engine


def found(engine: "Engine", edition: Edition, question: str, k: int, cancelled: Cancelled) -> list[Source]:
    """See `Corpus.find`; arguments and errors as there."""
    if k < 1:
        raise InvalidRequestError(f"k is the number of passages, at least 1, got {k}")
    prompt = build_prompt(engine.tokens, engine.config, question)
    room = max(prompt.room(engine.window) // PAGE, 1)
    reading = edition.begin()
    with engine.busy(cancelled):
        asked = edition.question(prompt, cancelled)
        # Two are tried together, as for an answer: that changes the order. More would only decide what to read.
        rule = Consensus(max_passages=2)
        ranking = rule.rank(edition.pages, asked, engine.attachment.scaling, room)
    del reading
    shares, sources = ranking.evidence.tolist(), list[Source]()
    for passage in ranking.order:
        sources += passages(edition.documents, ranking.passages.pages(passage).tolist(), shares)
        if len(sources) >= k:
            break
    return sources[:k]
