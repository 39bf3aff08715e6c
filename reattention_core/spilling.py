"""Reads documents that have no room where the model runs: a group at a time, each written below before the next is read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from reattention_core.cache.layout import Layout, lay_out
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.pinned import pinned
from reattention_core.ingest import Ingest
from reattention_core.sources import ReadDocument

if TYPE_CHECKING:
    from reattention_core.engine import Engine
    from reattention_core.store.draft import Draft

Reading = Callable[[range, Layout], Ingest]
"""Makes the reading of some documents by themselves, laid out so."""


def spilled(
    engine: "Engine",
    documents: Sequence[ReadDocument],
    layout: Layout,
    groups: Sequence[range],
    reading: Reading,
    draft: "Draft | None",
    to_disk: bool,
) -> tuple[Pages, list[ReadDocument]]:
    """Read documents into a lower tier.

    Args:
        engine: whose model reads.
        documents: where each will lie.
        layout: the same.
        groups: the numbers of those that are read together.
        reading: reads a group.
        draft: makes them durable, where there is one.
        to_disk: their tier is the disk, and there is a draft; else it is the host.
    """
    device, placed, host = engine.attachment.model.device, list(documents), None
    for group in groups:
        own = lay_out(layout.lengths[group.start : group.stop])
        pages = reading(group, own).independent()
        if draft is not None:
            read = [replace(placed[n], start=start) for n, start in zip(group, own.starts, strict=True)]
            written = draft.write(pages, read)
            for number, document in zip(group, written, strict=True):
                placed[number] = replace(placed[number], saved=document.saved)
        if to_disk:
            continue
        if host is None:
            host = Pages.allocate(
                engine.attachment.shapes, layout.first, layout.filled, engine.cache_dtype, torch.device("cpu")
            )
            if pages.summary_size:
                host.reserve_summaries([(s.shape[0], s.shape[2]) for s in pages.summaries], pages.summary_size)
            host.begin_with(pages)
            host = host if device.type == "cpu" else pinned(host)
        host.hold(layout.starts[group.start] // PAGE, pages)
    if host is not None:
        return engine.tiers.below(host), placed
    assert draft is not None
    below, placed = draft.mapped(placed)
    return engine.tiers.below(below), placed
