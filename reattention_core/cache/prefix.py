"""A tree of prompts' beginnings: keys and values of what was read before, for prompts that begin alike; knows no model.

Every page of 32 tokens is found by a hash of itself chained to that of the page before it, and its tokens are compared: a hash
that collides is a miss, never a wrong answer. Pages lie in runs, which are what is dropped when the budget is spent: the least
recently used first, a run that others continue only after them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from reattention_core.cache.kept import Kept
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE

RUN = 32
"""Pages in a run at most: dropping one frees the memory of 1,024 tokens."""


class _Page:
    """One page's place in the tree: after another page, or first in a way of reading."""

    __slots__ = ("before", "digest", "run", "tokens")

    def __init__(self, tokens: bytes, before: "_Page | str", digest: bytes) -> None:
        self.tokens, self.before, self.digest = tokens, before, digest
        self.run: _Run


class _Run:
    """Neighbouring pages of one prompt, copied from its cache: un-rotated keys and values [G, n, D] of every layer."""

    def __init__(self, parent: "_Run | None", places: dict[bytes, _Page], nbytes: int) -> None:
        self.parent, self.places, self.nbytes = parent, places, nbytes
        self.pages: list[_Page] = []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.children = 0
        if parent is not None:
            parent.children += 1

    @property
    def held(self) -> bool:
        return self.children > 0

    def forget(self) -> None:
        for page in self.pages:
            del self.places[page.digest]
        if self.parent is not None:
            self.parent.children -= 1


class PrefixTree:
    """Beginnings of prompts, by way of reading and tokens. Threads may share it.

    Args:
        kept: budget of bytes.

    Attributes:
        hits: prompts of which something was found.
        misses: prompts of which nothing was.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept, self.hits, self.misses = kept, 0, 0
        self._places: dict[bytes, _Page] = {}

    @torch.inference_mode()
    def take(self, way: str, ids: Sequence[int], step: int, cache: ContextCache) -> int:
        """Put what is known of a prompt's beginning into an empty cache.

        Args:
            way: how the prompt is read; see `Reader.way`.
            ids: the prompt. Its last token is never taken, because the model must run it for its logits.
            step: the tokens taken are a multiple of this.
            cache: of one row.

        Returns:
            How many tokens it now holds.
        """
        with self.kept.lock:
            pages = self._match(way, ids[:-1])
            n = len(pages) * PAGE // step * step
            self.hits, self.misses = self.hits + (n > 0), self.misses + (n == 0)
            for run, tokens in _by_run(pages[: n // PAGE]).items():
                self.kept.use(run)
                for layer, keys, values in zip(cache.layers, run.keys, run.values, strict=True):
                    layer.update(keys[None, :, :tokens], values[None, :, :tokens])
            return n

    def keep(self, way: str, ids: Sequence[int], step: int, cache: ContextCache) -> None:
        """Remember a prompt that was read, as far as the cache holds it, in steps, and as far as the budget goes.

        Args:
            way: how it was read.
            ids: the prompt, from its first token on; the cache may hold more or less.
            step: what reading depends on beyond whole steps is not kept.
            cache: of one row.
        """
        n = min(len(ids), *(layer.n_tail for layer in cache.layers)) // step * step
        with self.kept.lock:
            pages = self._match(way, ids[:n])
            new = self._new(pages[-1] if pages else way, _pages(ids[len(pages) * PAGE : n]))
            before, first = pages[-1] if pages else None, len(pages) * PAGE
            for start in range(0, len(new), RUN):
                part = new[start : start + RUN]
                run = self._copy(before, cache, first + start * PAGE, len(part) * PAGE)
                if run is None:
                    return
                for page in part:
                    page.run = run
                    self._places[page.digest] = page
                run.pages, before = part, part[-1]
                self.kept.add(run)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Inside, nothing is added to the budget's memory."""
        with self.kept.lock:
            self.kept.fixed += 1
        try:
            yield
        finally:
            with self.kept.lock:
                self.kept.fixed -= 1

    def release(self, nbytes: int | None = None) -> None:
        """Forget what takes so many bytes, or everything."""
        with self.kept.lock:
            self.kept.release(self.kept.nbytes if nbytes is None else nbytes)

    def _match(self, way: str, ids: Sequence[int]) -> list[_Page]:
        """The known pages at a prompt's beginning."""
        found: list[_Page] = []
        before: _Page | str = way
        for tokens in _pages(ids):
            page = self._places.get(_digest(before, tokens))
            if page is None or page.tokens != tokens or page.before != before:
                break
            found.append(page)
            before = page
        return found

    def _new(self, before: "_Page | str", pages: Iterator[bytes]) -> list[_Page]:
        """The pages after one, up to one that could not be found, because another page has its hash."""
        made: dict[bytes, _Page] = {}
        for tokens in pages:
            before = _Page(tokens, before, _digest(before, tokens))
            if before.digest in self._places or before.digest in made:
                break
            made[before.digest] = before
        return list(made.values())

    @torch.inference_mode()
    def _copy(self, before: _Page | None, cache: ContextCache, first: int, n: int) -> "_Run | None":
        """A run of the cache's tokens first..first+n-1, or None where the budget has no room for it."""
        parent = before.run if before is not None else None
        stop = first + n
        tails = [(layer.tail_keys.tokens, layer.tail_values.tokens) for layer in cache.layers]
        nbytes = sum(t[0, :, first:stop].nbytes for pair in tails for t in pair)
        run = _Run(parent, self._places, nbytes)  # from here on the parent stays
        try:
            if self.kept.make_room(nbytes):
                run.keys = [key[0, :, first:stop].clone() for key, _ in tails]
                run.values = [value[0, :, first:stop].clone() for _, value in tails]
                return run
        except BaseException:
            run.forget()
            raise
        run.forget()
        return None


def _pages(ids: Sequence[int]) -> Iterator[bytes]:
    """Whole pages of tokens."""
    raw = np.asarray(ids, dtype=np.int32).tobytes()
    size = PAGE * 4
    for start in range(0, len(raw) // size * size, size):
        yield raw[start : start + size]


def _digest(before: _Page | str, tokens: bytes) -> bytes:
    """Chained hash of a page."""
    start = before.encode() if isinstance(before, str) else before.digest
    return hashlib.blake2b(tokens + start, digest_size=16).digest()


def _by_run(pages: Sequence[_Page]) -> dict[_Run, int]:
    """The runs that pages lie in, each from its first page on, and how many of its tokens are meant."""
    counts: dict[_Run, int] = {}
    for page in pages:
        counts[page.run] = counts.get(page.run, 0) + PAGE
    return counts
