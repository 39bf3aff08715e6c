"""A prompt beyond the window that asks something of a long text: the text is read, and the passages found take its place.

The passages are found as those of a corpus are, by `consensus`. The prompt besides, instructions, history and the question's
own words, is left as it came, and passages are read anew where the text stood, because there the model was trained to look.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reattention_core.cache.pages import PAGE
from reattention_core.config import Generation
from reattention_core.memory import check_prompt
from reattention_core.prefill import Cancelled
from reattention_core.prompts import Prompt, build_prompt, encode_prompt
from reattention_core.request import Request
from reattention_core.select import Consensus, Selector
from reattention_core.sources import Source, passages
from reattention_core.structured.structure import Shape, Structure
from reattention_core.stuffed import Stuffed, take_apart

if TYPE_CHECKING:
    from reattention_core.engine import Engine

GAP = "\n\n"
"""Stands between passages."""


def request(
    engine: "Engine",
    prompt: str | Sequence[Mapping[str, Any]],
    settings: Generation,
    selector: Selector,
    structure: Structure,
    limit: int | None,
) -> Request:
    """The request of a prompt without a corpus: as it is, or, where it does not fit, by what it asks of which text.

    Only `consensus` looks for a question; the papers' rules read every prompt as one sequence, and so does it where the prompt
    cannot be taken apart, or leaves too little of the window without its text. Arguments as for `Engine.stream`.

    Raises:
        ContextTooLongError: prompt and answer take more than `limit`, or than memory holds.
    """
    ids, shape = encode_prompt(engine.tokenizer, engine.tokens, prompt, structure), engine.shape(structure)
    check_prompt(engine.attachment, len(ids), settings.max_new_tokens, limit)
    whole = Prompt(ids, slice(0, 0), [])
    room = engine.window - settings.max_new_tokens
    if isinstance(selector, Consensus) and len(ids) > room:
        stuffed = take_apart(prompt)
        if stuffed is not None:
            rest = encode_prompt(engine.tokenizer, engine.tokens, stuffed.with_documents(""), structure)
            spare = (room - len(rest)) // PAGE - 1  # what is cut out of its text may take a few tokens more
            if len(rest) <= room // 2 and spare > 0:
                return LongPrompt(engine, whole, stuffed, spare, settings, selector, structure, shape)
    return Request(engine, whole, settings, selector, shape=shape)


class LongPrompt(Request):
    """A prompt that is answered from passages of the text that it holds.

    Args:
        engine: whose model runs.
        whole: the prompt's token ids.
        stuffed: the prompt, taken apart.
        room: pages of the text that fit in its place.
        settings: how tokens are drawn.
        selector: finds the passages.
        structure: what the answer is held to, which the prompt tells the model.
        shape: of that structure.
    """

    def __init__(
        self,
        engine: "Engine",
        whole: Prompt,
        stuffed: Stuffed,
        room: int,
        settings: Generation,
        selector: Consensus,
        structure: Structure,
        shape: Shape | None,
    ) -> None:
        super().__init__(engine, whole, settings, selector, shape=shape)
        self._stuffed, self._room, self._rule, self._structure = stuffed, room, selector, structure
        self._found: list[Source] = []
        self._read = self._taken = 0

    def _work(self, emit: Callable[[str], None], cancelled: Cancelled) -> None:
        began = time.perf_counter()
        found = self._search(cancelled)
        room = self._engine.window - self._settings.max_new_tokens
        while found and len(ids := self._ids(found)) > room:
            found = found[:-1]
        if found:  # else it is read as a sequence
            self._prompt = Prompt(ids, slice(0, 0), [])
            self._found = [self._placed(source) for source in found]
        super()._work(emit, cancelled)
        self._started = began

    def _search(self, cancelled: Cancelled) -> list[Source]:
        """The passages to read, those with the most evidence first."""
        engine, stuffed, rule = self._engine, self._stuffed, self._rule
        prompt = build_prompt(engine.tokens, engine.config, stuffed.question)
        with engine.texts.read(engine, stuffed.documents, cancelled) as (edition, fresh):
            self._read, self._taken = fresh, max(edition.n_tokens - fresh, 0)
            with engine.busy(cancelled):
                question = edition.question(prompt, cancelled)
                ranking = rule.rank(edition.pages, question, engine.attachment.scaling, self._room)
            pages = rule.choose(ranking, self._room).sort().values.tolist()
            return passages(edition.documents, pages, ranking.evidence.tolist())

    def _ids(self, found: Sequence[Source]) -> list[int]:
        """The prompt with passages, in the order of the text, in the text's place."""
        engine, parts = self._engine, sorted(found, key=lambda source: (int(source.document_id), source.start))
        prompt = self._stuffed.with_documents(GAP.join(part.quote for part in parts))
        return encode_prompt(engine.tokenizer, engine.tokens, prompt, self._structure)

    def _placed(self, source: Source) -> Source:
        """A passage by its characters in the message that holds the text."""
        shift = self._stuffed.start + int(source.document_id)
        place = {"start": source.start + shift, "end": source.end + shift}
        return source.model_copy(update={"document_id": "prompt", **place})

    def _tokens(self) -> tuple[int, int]:
        run, cached = super()._tokens()
        return run + self._read, cached + self._taken

    def _sources(self) -> list[Source]:
        return self._found
