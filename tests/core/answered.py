"""Answers over documents of one's own, without a model: every token covers four characters, as a reading would have it."""

from collections.abc import Sequence

import torch

from reattention_core import Answer, Document, Usage
from reattention_core.cache.pages import PAGE, pages_for
from reattention_core.evidence import Evidence
from reattention_core.sources import ReadDocument, passages

USAGE = Usage(
    prompt_tokens=12,
    cached_tokens=900,
    window_tokens=80,
    completion_tokens=5,
    recall_seconds=0.5,
    first_token_seconds=0.75,
    seconds=1.5,
    tail_bytes=2_000_000,
)


def answered(
    documents: Sequence[Document], read: Sequence[tuple[int, int]], question: str = "Who?", text: str = "Nobody."
) -> Answer:
    """An answer that read some pages, each with twice the evidence of the one after it.

    Args:
        documents: of the corpus.
        read: (document, page in it), most evidence first.
        question: what was asked.
        text: what was answered.
    """
    placed, start = list[ReadDocument](), PAGE
    for document in documents:
        at = torch.arange(0, len(document.text), 4, dtype=torch.int32)
        spans = torch.stack([at, (at + 4).clamp(max=len(document.text))], 1)
        placed.append(ReadDocument(document, spans, start))
        start += pages_for(len(spans)) * PAGE
    evidence = torch.zeros(start // PAGE)
    pages = [placed[document].start // PAGE + page for document, page in read]
    for place, page in enumerate(pages):
        evidence[page] = 0.5**place
    found = passages(placed, sorted(pages), evidence.tolist())
    shares = Evidence.shares(evidence, len(evidence))
    about = Evidence(question, placed, shares, sorted(pages), "consensus", "tiny", 5_000_000)
    return Answer(text=text, sources=found, usage=USAGE, finish_reason="stop", evidence=about)


HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"></div></main></html>"
    " {{ 7 * 7 }} {% raw %} &amp; ' onmouseover='alert(1) \x1b[31m \u202egnp.exe\u2066 \x00 ]]> -->"
)
"""What a document may hold to break out of the page that quotes it."""
