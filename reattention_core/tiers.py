"""Which tier a corpus's keys and values go to, and what goes down when another needs its place; knows no documents.

device   where the model runs: attention reads them where they lie
host     memory of the host, pinned where a GPU reads it; on the device only an index (`cache.tiered`)
disk     the files of a saved corpus, mapped; likewise

A CPU has no host tier of its own unless `device_bytes` draws a line between the two: there both are one memory.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from reattention_core import memory
from reattention_core.beside import Beside
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.pinned import pinned
from reattention_core.cache.stage import Stage
from reattention_core.cache.stitched import onto, underlying
from reattention_core.cache.tiered import TieredPages
from reattention_core.errors import CapacityError, ReAttentionError
from reattention_core.memory import RESERVE, MemoryPlan
from reattention_core.select import Consensus
from reattention_core.select.recall import sharing

if TYPE_CHECKING:
    from reattention_core.corpus import Corpus
    from reattention_core.edition import Edition
    from reattention_core.engine import Engine

Tier = Literal["device", "host", "disk"]

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)

STAGED = 1024
"""Pages that a question brings to the device at most, as far as memory is planned for: `consensus` brings about 800."""


@dataclass(frozen=True)
class Held:
    """Bytes of some corpora by where they are, what several share counted once.

    Attributes:
        device: keys and values where the model runs.
        index: what is there of corpora in lower tiers.
        host: keys and values on the host.
        mapped: likewise on disk.
    """

    device: int
    index: int
    host: int
    mapped: int


class Tiers:
    """The tiers of an engine. Changes are for who has the model (`Engine.busy`).

    Args:
        engine: whose.

    Attributes:
        stage: where pages of lower tiers are read.
        limits: bytes that corpora may take on the device and on the host; None for all that is free.
        evictions: corpora that went down to make room for others.
        copies: whether a corpus of several pieces must be copied to one where the model runs.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine, self._device = engine, engine.attachment.model.device
        self.stage, self.evictions = Stage(self._device), 0
        settings, free = engine.config, {"device": self._device, "host": CPU}
        budgets = {"device": settings.device_bytes, "host": settings.host_bytes}
        self.limits = {
            tier: int(budget * memory.free_bytes(free[tier])) if isinstance(budget, float) else budget
            for tier, budget in budgets.items()
        }
        self.copies = self._device != CPU
        self._has_host = self._device != CPU or settings.device_bytes is not None

    def held(self, corpora: "list[Corpus]") -> Held:
        """What some open corpora take."""
        all_pages = [corpus.pages for corpus in corpora]
        tiered = [pages for pages in all_pages if isinstance(pages, TieredPages)]
        below = {id(own): own for pages in tiered for own in underlying(pages)}
        beside = {id(own): own for pages in all_pages if pages.below is None for own in underlying(pages)}
        return Held(
            device=sum(own.nbytes for own in beside.values() if not own.mapped),
            index=sum(pages.index_bytes for pages in tiered),
            host=sum(own.nbytes for own in below.values() if not own.mapped),
            mapped=sum(own.nbytes for own in {**below, **beside}.values() if own.mapped),
        )

    def room(self, tier: Tier) -> int:
        """Bytes that corpora may still take in a tier."""
        limit = self.limits[tier]
        if limit is None:
            return self._free(tier)
        held = self.held(self._engine.tally.look()[1])
        used = held.host if tier == "host" else held.device + held.index
        return max(0, min(self._free(tier), limit - used))

    def _free(self, tier: Tier) -> int:
        return int(memory.free_bytes(self._device if tier == "device" else CPU) * (1 - RESERVE))

    def index_bytes(self, n_pages: int) -> int:
        """What a corpus in a lower tier takes on the device: index and tables."""
        shapes = self._engine.attachment.shapes
        keys = sum(shapes[layer][1] * PAGE + 4 for layer, _ in self._indexed())
        compared = [shapes[layer] for layer in self._engine.trusted.compared]
        values = sum(groups * (size * PAGE + 4) for groups, _, size in compared)
        return n_pages * (keys + values + 2 * 8)

    def _indexed(self) -> set[tuple[int, int]]:
        """The layer and number of every key-value head that the default rule's trusted heads read."""
        attachment = self._engine.attachment
        repeats = [own[0] // shape[0] for own, shape in zip(attachment.query_shapes, attachment.shapes, strict=True)]
        return set(sharing(self._engine.trusted.heads[: Consensus().heads], repeats))

    def choose(
        self, plan: MemoryPlan, n_pages: int, group: int, independent: bool, durable: bool, beside: Beside | None = None
    ) -> Tier:
        """The highest tier with room for documents that are about to be read.

        Args:
            plan: what reading them takes.
            n_pages: of all documents.
            group: bytes of the pages that are read together, where they go to a lower tier.
            independent: whether they are read one by one; others are all needed while they are read.
            durable: whether they are saved, so that the disk can be their tier.
            beside: what they will be put together with; it goes down with them, where they must.

        Raises:
            CapacityError: no tier has; says what each would have needed and what is free.
        """
        if beside is not None:
            beside.settled = True  # or what follows raises
        if self.fits(plan.pages, plan.working, beside):
            return "device"
        twice = beside.nbytes if beside is not None and not beside.below else 0
        needed = plan.pages + max(plan.working, (twice + plan.pages) * bool(twice))
        message = (
            f"this corpus needs {needed:,} bytes on {plan.device} (tier device): {plan.pages:,} for its pages and about "
            f"{plan.working:,} to read them{f', then {twice + plan.pages:,} to put all of it together' * bool(twice)}; "
            f"{plan.free:,} are free, and {self.room('device'):,} may be taken by corpora"
        )
        lower = ""
        if independent and beside is not None and (durable or self.make_room("host", beside.replaced + plan.pages)):
            beside.go_down()
        if independent and (beside is None or beside.below) and self.make_room("device", 0, plan.working + group):
            index = self.index_bytes(n_pages)
            if self.make_room("device", index, plan.working + group):
                if self.make_room("host", plan.pages):
                    return "host"
                if durable:
                    return "disk"
            else:
                lower = f". In the tiers below its index alone needs {index:,} there"
        if independent and not lower:
            lower = (
                f". In tier host it needs {plan.pages + twice:,} and {self.room('host') * self._has_host:,} may be taken; tier "
                "disk is for corpora with a name"
            )
        raise CapacityError(
            f"{message}{lower}. Ingest fewer documents, choose a smaller cache_dtype or ingest_tokens, raise device_bytes or "
            "host_bytes, or free memory",
            needed=needed,
            free=plan.free,
        )

    def fits(self, more: int, working: int, beside: Beside | None) -> bool:
        """Whether the device has room for more pages, for reading them, and for what they are put together with.

        Args:
            more: bytes of pages.
            working: that reading them takes for a while.
            beside: the rest of the corpus, if there is one.
        """
        if beside is not None and beside.below and self._has_host:
            return False
        if beside is None or not self.copies:
            return self.make_room("device", more, working)
        whole = beside.nbytes + more
        grows = max(0, whole - beside.replaced)
        return self.make_room("device", grows, more + max(working, whole) - grows)

    def settle(self, beside: Beside) -> None:
        """See that what is left of a corpus can be put together where it lies, or else has gone down.

        Raises:
            CapacityError: it can do neither.
        """
        if not beside.below and not self.fits(0, 0, beside) and not beside.go_down():
            raise CapacityError(
                f"this corpus takes {beside.replaced:,} bytes on {self._device} (tier device), {beside.nbytes:,} more while it "
                f"is put together anew, and {self.room('device'):,} may be taken; in tier host "
                f"{self.room('host') * self._has_host:,}; tier disk is for corpora with a name. Raise device_bytes or host_bytes, "
                "close other corpora or free memory",
                needed=beside.nbytes,
                free=self.room("device"),
            )

    def together(self, corpora: "Sequence[Corpus]", editions: "Sequence[Edition]") -> list[Pages]:
        """The pages of editions of corpora, from which all are put together as one more; the corpora stay where they are.

        Raises:
            CapacityError: the whole has no room on the device, and no tier below has room for what lies there.
        """
        found, whole = [edition.pages for edition in editions], sum(edition.pages.nbytes for edition in editions)
        if not self.copies or len(found) == 1:
            return found
        stay = [edition.begin() for edition in editions]  # none of them goes down to make room for all
        if all(pages.below is None for pages in found) and self.make_room("device", whole):
            return found
        for number, (corpus, edition) in enumerate(zip(corpora, editions, strict=True)):
            if edition.pages.below is None:
                lower = self.lower(corpus.name, edition, corpus.generation)
                if lower is None:
                    raise CapacityError(
                        f"these corpora take {whole:,} bytes together, {self.room('device'):,} may be taken on {self._device} "
                        f"(tier device), and in tier host {self.room('host') * self._has_host:,}: raise device_bytes or "
                        "host_bytes, close other corpora, or join corpora with names",
                        needed=whole,
                        free=self.room("device"),
                    )
                found[number] = lower
        del stay
        return found

    def place(self, pages: Pages) -> Pages:
        """Pages that were mapped from disk in the highest tier with room.

        Raises:
            CapacityError: not even their index has room on the device.
        """
        if self._device == CPU:  # where they are mapped they can be read at once
            return pages if self.room("device") >= pages.nbytes else self.below(pages)
        if self.make_room("device", pages.nbytes):
            return onto(pages, self._device)
        index, staged = self.index_bytes(pages.n_pages), min(pages.n_pages, STAGED) * pages.page_bytes
        if not self.make_room("device", index, staged):
            free = self.room("device")
            raise CapacityError(
                f"this corpus needs {index:,} bytes on {self._device} (tier device) for its index alone and {staged:,} for the "
                f"pages of a question, and {free:,} may be taken: raise device_bytes, close other corpora or free memory",
                needed=index + staged,
                free=free,
            )
        return self.below(pinned(onto(pages, CPU)) if self.make_room("host", pages.nbytes) else pages)

    def higher(self, edition: "Edition", _: int | None = None) -> Pages | None:
        """The pages of an edition in a higher tier that has room for them as things are; None where there is none."""
        pages = edition.pages
        if pages.below is None:
            return None
        whole = pages.below
        if self.room("device") >= whole.nbytes:
            return whole if self._device == CPU else onto(whole, self._device)
        if underlying(whole)[0].mapped and self._has_host and self.room("host") >= whole.nbytes:
            return self.below(pinned(onto(whole, CPU)))
        return None

    def below(self, pages: Pages) -> TieredPages:
        """Pages on the host as those of a lower tier, with their index made."""
        tiered = TieredPages(pages, self.stage)
        for layer, group in self._indexed():
            tiered.scan_head(layer, group)
        for layer in self._engine.trusted.compared:
            tiered.scan_values(layer, 0, 0)
        return tiered

    def make_room(self, tier: Tier, needed: int, beside: int = 0) -> bool:
        """Have room for so many bytes of corpora in a tier, and for so many of something else for a while, if that can be."""
        if tier == "host" and not self._has_host:
            return False

        def lacking() -> int:
            return max(needed - self.room(tier), needed + beside - self._free(tier), 0)

        if tier == "device" and lacking():
            self._engine.prefixes.release(lacking())
        idle = self._idle(tier) if lacking() else []
        if sum(gain for _, gain in idle) >= lacking():
            for corpus, _ in idle:
                if not lacking():
                    break
                moved = corpus.move(partial(self.lower, corpus.name))  # which may count others
                self.evictions += moved
        return not lacking()

    def _idle(self, tier: Tier) -> "list[tuple[Corpus, int]]":
        """Corpora in a tier that could go down, least recently used first, and the bytes that each would free there."""
        found = []
        for corpus in sorted(self._engine.tally.look()[1], key=lambda one: one.used):
            pages = corpus.pages
            own = underlying(pages)
            where = "host" if pages.below is not None else "device"
            movable = corpus.name is not None or (tier == "device" and self._has_host)
            if where == tier and movable and not corpus.edition.held and not all(one.mapped for one in own):
                freed = sum(one.nbytes for one in own if not one.mapped)
                found.append((corpus, freed - (self.index_bytes(pages.n_pages) if tier == "device" else 0)))
        return found

    def lower(self, name: str | None, edition: "Edition", generation: int | None) -> Pages | None:
        """A corpus's pages one tier down, or two; None where there is no place for them."""
        pages = edition.pages
        if pages.below is None and self.make_room("host", pages.nbytes):
            return self.below(pages if self._device == CPU else pinned(onto(pages, CPU)))
        if name is None:
            return None
        try:
            saved = self._engine.store.load(name, self._engine.identity, CPU)
        except ReAttentionError as error:  # removed or damaged since: it stays
            logger.warning("corpus %r stays in memory: %s", name, error)
            return None
        same = [d.start for d in saved.documents] == [d.start for d in edition.documents]
        return self.below(saved.pages) if same and saved.manifest.generation == generation else None
