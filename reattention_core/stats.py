"""What an engine holds and has done, in numbers; changes nothing."""

import threading
import weakref
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from reattention_core.corpus import Corpus
    from reattention_core.engine import Engine

OUTCOMES = ("answered", "cancelled", "late", "failed")


class Stats(BaseModel):
    """One look at an engine. Counts and seconds are sums since it was made.

    Attributes:
        bytes: by tier and by what it holds. `device`, where the model runs: `weights`, the `corpora` that are open (what
            several share is counted once), the `index` of those in lower tiers, the pages of these that are `staged`, and
            `prefixes`, what is kept of prompts. `host`: the `corpora` that lie there. `disk`: `mapped`, open corpora that are
            read from disk page by page, and `saved`, every file in the engine's folder.
        corpora_bytes_limit: by tier, the most that corpora may take (`Config.device_bytes`, `host_bytes`); None for all that is
            free.
        corpora_evictions: corpora that went to a lower tier to make room for others.
        staged_hits: pages in lower tiers that questions read and that were staged already.
        staged_misses: such pages that had to be brought.
        prefix_bytes_limit: the most that prefixes may take.
        prefix_hits: prompts without a corpus of which something was known.
        prefix_misses: such prompts of which nothing was.
        prefix_evictions: what was dropped from prefixes to make room.
        waiting: how many wait for the model now, reading of documents included.
        waiting_limit: how many may.
        running: whether someone has it now.
        refused: how many were sent away because too many waited.
        waited_seconds: that all waited for it.
        ran_seconds: that they had it.
        requests: prompts that were answered, cancelled, late (beyond their timeout) and failed, a refusal included.
        answer_seconds: from the call to the end, of those that were answered.
        first_token_seconds: from the call to their first piece of text.
        tokens_read: of documents and prompts, run by the model.
        tokens_cached: of corpora and prompts, not run because they had been read before.
        tokens_written: drawn.
    """

    model_config = ConfigDict(frozen=True)

    bytes: dict[str, dict[str, int]]
    corpora_bytes_limit: dict[str, int | None]
    corpora_evictions: int
    staged_hits: int
    staged_misses: int
    prefix_bytes_limit: int
    prefix_hits: int
    prefix_misses: int
    prefix_evictions: int
    waiting: int
    waiting_limit: int
    running: bool
    refused: int
    waited_seconds: float
    ran_seconds: float
    requests: dict[str, int]
    answer_seconds: float
    first_token_seconds: float
    tokens_read: int
    tokens_cached: int
    tokens_written: int


class Tally:
    """Counts what an engine did, and knows its open corpora. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._corpora: weakref.WeakSet[Corpus] = weakref.WeakSet()

    def add(self, **sums: float) -> None:
        """Add to sums, by their names."""
        with self._lock:
            for name, more in sums.items():
                self._sums[name] += more

    def opened(self, corpus: "Corpus") -> None:
        """A corpus is open, as long as somebody holds it."""
        with self._lock:
            self._corpora.add(corpus)

    def look(self) -> "tuple[defaultdict[str, float], list[Corpus]]":
        """The sums so far, and the open corpora."""
        with self._lock:
            return self._sums.copy(), list(self._corpora)


def measured(engine: "Engine") -> Stats:
    """The numbers of an engine now."""
    kept, prefixes, turns = engine.prefixes.kept, engine.prefixes, engine.turns
    sums, corpora = engine.tally.look()
    tiers, held = engine.tiers, engine.tiers.held(corpora)
    counts = {name: int(sums[name]) for name in (*OUTCOMES, "read", "cached", "written")}
    return Stats(
        bytes={
            "device": {
                "weights": sum(parameter.nbytes for parameter in engine.attachment.model.parameters()),
                "corpora": held.device,
                "index": held.index,
                "staged": tiers.stage.nbytes,
                "prefixes": kept.nbytes,
            },
            "host": {"corpora": held.host},
            "disk": {"mapped": held.mapped, "saved": _bytes_in(engine.folder)},
        },
        corpora_bytes_limit=tiers.limits,
        corpora_evictions=tiers.evictions,
        staged_hits=tiers.stage.hits,
        staged_misses=tiers.stage.misses,
        prefix_bytes_limit=kept.limit,
        prefix_hits=prefixes.hits,
        prefix_misses=prefixes.misses,
        prefix_evictions=kept.evictions,
        waiting=turns.waiting,
        waiting_limit=engine.config.max_waiting,
        running=turns.running,
        refused=turns.refused,
        waited_seconds=turns.waited,
        ran_seconds=turns.ran,
        requests={outcome: counts[outcome] for outcome in OUTCOMES},
        answer_seconds=sums["seconds"],
        first_token_seconds=sums["first"],
        tokens_read=counts["read"],
        tokens_cached=counts["cached"],
        tokens_written=counts["written"],
    )


def _bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder; what another process removes meanwhile is left out."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size * file.is_file()
    return total
