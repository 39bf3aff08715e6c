"""What stands before every document: the attention sink, a page of tokens; knows no model, and not how they are read."""

import re

from reattention_core.cache.pages import PAGE
from reattention_core.tokens import PlainTokenizer


def sink_ids(tokens: PlainTokenizer, text: str, leading: list[int]) -> list[int]:
    """A page of tokens: as many whole sentences of a text as fit, then line breaks.

    Behind a sentence that breaks off, a small model finds what a document says first and does not read it (docs/quality.md).

    Args:
        tokens: encodes text.
        text: an instruction; one without an end of a sentence is cut.
        leading: the begin token, where texts have one.
    """
    ids, spans = tokens.encode(text)
    room = PAGE - len(leading) - 1
    ends = {found.end() for found in re.finditer(r"[.!?](?=\s|$)", text)}
    whole = [n for n, (_, stop) in enumerate(spans[:room], 1) if stop in ends]
    kept = [*leading, *ids[: whole[-1] if whole else room]]
    line = tokens.encode("\n").ids or kept  # a vocabulary without line breaks says the end of the sentence again
    return kept + line[-1:] * (PAGE - len(kept))
