"""Puts the documents of several corpora into one, without reading any of them again; knows no files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.edition import assembled
from reattention_core.errors import InvalidRequestError
from reattention_core.memory import within_memory
from reattention_core.sources import ReadDocument

if TYPE_CHECKING:
    from reattention_core.corpus import Corpus


def joined(corpora: "Sequence[Corpus]") -> tuple[Pages, list[ReadDocument]]:
    """The documents of several corpora, one behind another; a document that several have is taken once.

    Args:
        corpora: at least one, all of one engine.

    Raises:
        InvalidRequestError: one was read with `joint`, or sums up its documents otherwise than the others; two different
            documents have one id; or there are no corpora.
        CapacityError: it would not fit the memory.
    """
    if not corpora:
        raise InvalidRequestError("join takes at least one corpus, got none")
    editions = [corpus.edition for corpus in corpora]
    for number, (corpus, edition) in enumerate(zip(corpora, editions, strict=True)):
        if corpus.mode == "joint":
            raise InvalidRequestError(
                f"corpus {corpus.name or number!r} was read with mode='joint', where every document was read in the light of "
                "the earlier ones: only corpora read with mode='independent' can be joined"
            )
        if edition.pages.summary_size != editions[0].pages.summary_size:
            raise InvalidRequestError(
                f"corpus {corpus.name or number!r} sums up chunks of {edition.pages.summary_size} tokens and the first one of "
                f"{editions[0].pages.summary_size} (0: none): ingest both with the same strategy"
            )
    parts: dict[str, tuple[Document, ReadDocument, Pages]] = {}
    with corpora[0].engine.busy(), within_memory():
        where = corpora[0].engine.tiers.together(corpora, editions)
    for edition, pages in zip(editions, where, strict=True):
        for read in edition.documents:
            document = read.document
            known = parts.setdefault(document.id, (document, read, pages))[0]
            if (known.title, known.text) != (document.title, document.text):
                raise InvalidRequestError(
                    f"two different documents have the id {document.id!r}: refresh or remove one of them before joining"
                )
    with within_memory():
        return assembled(where[0], parts.values())
