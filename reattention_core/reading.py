"""Gets documents as an engine's model reads them: from where they are kept, or by reading them; knows no names and no edits."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reattention_core.beside import Beside
from reattention_core.cache.layout import Layout, lay_out
from reattention_core.cache.pages import Pages, pages_for
from reattention_core.cache.stitched import onto
from reattention_core.documents import Document
from reattention_core.edition import assembled
from reattention_core.ingest import Ingest, groups
from reattention_core.memory import batch_tokens, plan, within_memory
from reattention_core.prefill import Cancelled
from reattention_core.progress import Progress, reporting
from reattention_core.select import Consensus, LongHeads, ReAttention, Selector
from reattention_core.sources import ReadDocument
from reattention_core.spilling import spilled
from reattention_core.store.about import About

if TYPE_CHECKING:
    from reattention_core.engine import Engine
    from reattention_core.store.draft import Draft

Mode = Literal["independent", "joint"]


@dataclass(frozen=True)
class How:
    """How documents are read.

    Attributes:
        mode: `independent` or `joint`; see `Engine.ingest`.
        selector: the rule by which `joint` reads, and which may ask for summaries in both.
        progress: see `Engine.ingest`.
        cancelled: asked between forward passes.
    """

    mode: Mode
    selector: Selector
    progress: bool | Progress = True
    cancelled: Cancelled = lambda: False

    @property
    def rule(self) -> str:
        """The rule that sums up chunks of documents, or ""."""
        size = self.selector.summary_size
        return f"{self.selector.name}-{size}" if size else ""


def drafted(
    engine: "Engine", name: str | None, how: How, base: int | None = None, replace: bool = False
) -> "AbstractContextManager[Draft | None]":
    """What makes documents durable while they are read; nothing without a name.

    Args:
        engine: in whose store.
        name: of the corpus.
        how: the way its documents are read.
        base: the generation that is edited; None for a new corpus.
        replace: whether a corpus of that name may be there.
    """
    if name is None:
        return nullcontext()
    engine.weights.check(closely=True)
    way = repr(how.selector) if how.mode == "joint" else f"reach {engine.config.reach}"
    return engine.store.draft(name, About(engine.name, how.mode, engine.identity, how.rule, way), base, replace)


Part = tuple[Document, ReadDocument, Pages]
"""A document as it is called, as it was read, and the pages it lies in."""


def obtain(
    engine: "Engine",
    documents: Sequence[Document],
    how: How,
    draft: "Draft | None" = None,
    sink: Pages | None = None,
    beside: Beside | None = None,
) -> tuple[Pages, list[Part]]:
    """Documents as the model reads them: those that the draft's store has are taken from there, the others are read.

    Args:
        engine: whose model reads.
        documents: at least one.
        how: the way to read them.
        draft: makes what is read durable as it is read, where there is one.
        sink: pages that begin with the sink's; the engine's when left out.
        beside: what they will be put together with.

    Returns:
        Pages that begin with the sink's, and a part for each document.

    Raises:
        CapacityError: they would not fit the memory, said before the first token is read.
        StorageFullError: they would not fit the disk, likewise, or it cannot be written.
        CancelledError: `how.cancelled` said so.
    """
    found: dict[int, Part] = {}
    if draft is not None:
        known = draft.find(documents)
        if how.mode == "joint":  # each was read in the light of all before it
            known = known[: next((n for n, part in enumerate(known) if part is None), len(known))]
        found = {n: (documents[n], *part) for n, part in enumerate(known) if part is not None}
    if how.mode == "joint" and len(found) < len(documents):
        begun = assembled(next(iter(found.values()))[2], found.values()) if found else None
        pages, read = read_documents(engine, documents, how, draft=draft, begun=begun)
        return pages, [(document, one, pages) for document, one in zip(documents, read, strict=True)]
    fresh = [document for number, document in enumerate(documents) if number not in found]
    if found:
        pages, read = assembled(next(iter(found.values()))[2], found.values())
        if not engine.tiers.copies or not (fresh or beside):
            with engine.busy(how.cancelled), within_memory():
                pages = engine.tiers.place(pages)
        elif beside is None:  # they go where all of them will
            beside = Beside(pages.nbytes)
        else:
            beside.nbytes += pages.nbytes
        sink = sink or pages
        found = {n: (documents[n], one, pages) for n, one in zip(found, read, strict=True)}
    if fresh:
        if sink is not None:  # a copy: what it is of may go elsewhere
            sink = onto(sink.before(1), engine.attachment.model.device)
        pages, read = read_documents(engine, fresh, how, sink, draft, beside=beside)
        sink, rest = sink or pages, iter(read)
        parts = [found[n] if n in found else (documents[n], next(rest), pages) for n in range(len(documents))]
    else:
        parts = [found[n] for n in range(len(documents))]
    assert sink is not None
    return sink, parts


def read_documents(
    engine: "Engine",
    documents: Sequence[Document],
    how: How,
    sink: Pages | None = None,
    draft: "Draft | None" = None,
    begun: tuple[Pages, list[ReadDocument]] | None = None,
    beside: Beside | None = None,
) -> tuple[Pages, list[ReadDocument]]:
    """Read documents into pages of their own, behind the sink; arguments and errors as for `obtain`.

    In `joint`, `begun` are the sink and the first documents as they were read before, which are taken over.
    """
    selector = how.selector
    if how.mode == "joint" and isinstance(selector, Consensus):
        # Consensus is a rule for questions; a streaming prefill asks none.
        selector = ReAttention.for_window(engine.window)
    encoded = engine.tokens.encode_documents(documents)
    ids = [document.ids for document in encoded]
    layout = lay_out([len(i) for i in ids])
    placed = [ReadDocument(d.document, d.spans, start) for d, start in zip(encoded, layout.starts, strict=True)]
    if begun is not None:
        sink, placed[: len(begun[1])] = begun
    n_tokens = sum(document.n_tokens for document in placed if document.saved is None)
    with (
        engine.busy(how.cancelled) as between,
        reporting(how.progress, n_tokens) as report,
        within_memory(),
        engine.prefixes.fixed(),  # what is free was counted
    ):
        at_once = engine.config.ingest_tokens or batch_tokens(engine.attachment)
        memory = plan(engine.attachment, layout, engine.cache_dtype, at_once, how.mode == "joint")
        together, page_bytes = groups(layout.lengths, at_once), memory.pages // len(layout.first)
        largest = max(sum(map(pages_for, layout.lengths[g.start : g.stop])) for g in together) * page_bytes
        alone, durable = how.mode == "independent", draft is not None
        tier = engine.tiers.choose(memory, len(layout.first), largest, alone, durable, beside)
        if draft is not None:
            draft.check_room(memory.pages)
        sink = engine.sink_page(selector, how.cancelled) if sink is None else sink

        def reading(numbers: range, own: Layout) -> Ingest:
            return Ingest(
                engine.attachment,
                sink,
                ids[numbers.start : numbers.stop],
                own,
                selector,
                engine.cache_dtype,
                engine.config.reach,
                at_once,
                report,
                between,
            )

        if tier != "device":
            pages, placed = spilled(engine, placed, layout, together, reading, draft, tier == "disk")
        else:
            ingest = reading(range(len(ids)), layout)

            def finished(first: int, stop: int) -> None:
                assert draft is not None
                placed[first:stop] = draft.write(ingest.pages, placed[first:stop], placed[:first])

            read = ingest.joint if how.mode == "joint" else ingest.independent
            pages = read(finished if draft else None)
    engine.tally.add(read=n_tokens)
    return pages, placed


def summing_rule(rule: str, size: int) -> Selector | None:
    """The rule of this library that summed up a saved corpus in chunks of a size; None where there is none, or it is not ours."""
    if size and rule == f"{LongHeads.name}-{size}":
        return LongHeads(chunk_size=size, attention_length=4 * size)
    return None
