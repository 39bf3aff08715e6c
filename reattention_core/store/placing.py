"""Finds documents that lie too scattered among the packs, to be written together; knows no files and no tensors."""

from dataclasses import replace

from reattention_core.cache.pages import pages_for
from reattention_core.sources import ReadDocument

MOST_RUNS = 64
"""A corpus that lies in more runs of segments than this is too scattered: short ones are written together."""


def gathered(documents: list[ReadDocument]) -> list[ReadDocument]:
    """Takes their places from documents in short runs, where there are too many runs."""
    runs: list[list[int]] = []
    for number, document in enumerate(documents):
        before = documents[runs[-1][-1]].saved if runs else None
        saved = document.saved
        follows = saved and before and (saved.pack, saved.number) == (before.pack, before.number + 1)
        if runs and (follows or saved is before is None):
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) <= MOST_RUNS:
        return documents
    pages = [sum(pages_for(documents[n].n_tokens) for n in run) for run in runs]
    short = {n for run, size in zip(runs, pages, strict=True) if size <= 2 * sum(pages) // MOST_RUNS for n in run}
    return [replace(d, saved=None) if n in short else d for n, d in enumerate(documents)]
