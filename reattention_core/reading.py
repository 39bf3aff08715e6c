"""Reads documents with an engine's model, whatever becomes of them; knows no names, files or edits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.ingest import Ingest
from reattention_core.memory import batch_tokens, plan, within_memory
from reattention_core.prefill import Cancelled
from reattention_core.progress import Progress, reporting
from reattention_core.select import Consensus, ReAttention, Selector
from reattention_core.sources import ReadDocument

if TYPE_CHECKING:
    from reattention_core.engine import Engine

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


def read_documents(
    engine: "Engine",
    documents: Sequence[Document],
    how: How,
    sink: Pages | None = None,
    check_room: Callable[[int], None] = lambda needed: None,
) -> tuple[Pages, list[ReadDocument]]:
    """Read documents into pages of their own, behind the sink.

    Args:
        engine: whose model reads.
        documents: at least one.
        how: the way to read them.
        sink: pages that begin with the sink's; the engine's when left out.
        check_room: told the bytes of the pages before the first token is read; refuses by raising.

    Raises:
        CapacityError: they would not fit the memory, said before the first token is read.
        CancelledError: `how.cancelled` said so.
    """
    selector = how.selector
    if how.mode == "joint" and isinstance(selector, Consensus):
        # Consensus is a rule for questions; a streaming prefill asks none.
        selector = ReAttention.for_window(engine.window)
    encoded = engine.tokens.encode_documents(documents)
    ids = [document.ids for document in encoded]
    with (
        engine.busy(how.cancelled) as between,
        reporting(how.progress, sum(map(len, ids))) as report,
        within_memory(),
        engine.prefixes.fixed(),  # what is free was counted
    ):
        layout = lay_out([len(i) for i in ids])
        at_once = engine.config.ingest_tokens or batch_tokens(engine.attachment)
        needs = engine.attachment, layout, engine.cache_dtype, at_once, how.mode == "joint"
        memory = plan(*needs)
        if memory.lacking:
            engine.prefixes.release(memory.lacking)
            memory = plan(*needs)
        memory.check()
        check_room(memory.pages)
        ingest = Ingest(
            engine.attachment,
            engine.sink_page(selector, how.cancelled) if sink is None else sink,
            ids,
            layout,
            selector,
            engine.cache_dtype,
            engine.config.reach,
            at_once,
            report,
            between,
        )
        pages = ingest.independent() if how.mode == "independent" else ingest.joint()
    engine.tally.add(read=sum(map(len, ids)))
    placed = [ReadDocument(d.document, d.spans, start) for d, start in zip(encoded, layout.starts, strict=True)]
    return pages, placed
