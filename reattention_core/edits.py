"""Carries out the plan of an edit: reads what must be read, puts all of it together, saves it; knows no sources."""

from functools import partial
from typing import TYPE_CHECKING

from reattention_core.beside import Beside
from reattention_core.cache.pages import Pages, pages_for
from reattention_core.editing import Plan
from reattention_core.edition import assembled
from reattention_core.memory import within_memory
from reattention_core.reading import How, drafted, obtain
from reattention_core.sources import ReadDocument

if TYPE_CHECKING:
    from reattention_core.corpus import Corpus


def carried_out(corpus: "Corpus", plan: Plan, how: How) -> tuple[Pages, list[ReadDocument], int | None]:
    """A corpus as planned, for who may change it: pages, documents and the generation that is saved.

    Where the device cannot hold the old and the new pages at once the corpus goes down a tier first.

    Raises:
        CapacityError: no tier can, said before the first token is read.
    """
    # What this held besides the edition would stay where it is, though the edition went elsewhere.
    engine, old = corpus.engine, corpus.documents
    fresh = [p.document for p in plan.documents if p.kept is None]
    kept = 1 + sum(pages_for(old[p.kept].n_tokens) for p in plan.documents if p.kept is not None)
    beside = Beside.kept(corpus.pages, kept, lambda: corpus.moved(partial(engine.tiers.lower, corpus.name)))
    generation = corpus.generation
    with drafted(engine, corpus.name, how, generation) as draft, within_memory():
        got = iter(obtain(engine, fresh, how, draft, corpus.pages, beside)[1] if fresh else ())
        if not beside.settled:  # nothing was read
            with engine.busy(how.cancelled):
                engine.tiers.settle(beside)
        here = corpus.pages
        parts = [next(got) if p.kept is None else (p.document, old[p.kept], here) for p in plan.documents]
        pages, placed = assembled(here, parts)
        if draft is not None:
            manifest, placed = draft.publish(pages, placed)
            generation = manifest.generation
    return pages, placed, generation


def unchanged(corpus: "Corpus", plan: Plan) -> bool:
    """Whether the plan leaves everything as it is."""
    kept = [(p.document, p.kept) for p in plan.documents]
    return kept == [(read.document, number) for number, read in enumerate(corpus.documents)]
