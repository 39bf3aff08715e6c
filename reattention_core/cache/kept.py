"""Holds what may be needed again within a budget of bytes, dropping the least recently used; knows not what it is."""

import threading
from collections.abc import Iterator
from typing import Protocol


class Entry(Protocol):
    """Something worth keeping.

    Attributes:
        nbytes: memory that it takes.
        held: whether it must stay, because it is being read or something else stands on it.
    """

    nbytes: int

    @property
    def held(self) -> bool:
        """See above."""

    def forget(self) -> None:
        """Called as it is dropped: let go of the memory."""


class Kept:
    """Entries by last use. Not safe for threads by itself: whoever calls it holds its lock.

    Args:
        limit: bytes that all entries together may take.

    Attributes:
        nbytes: bytes that they take.
        lock: of all who keep things within this budget.
        evictions: entries dropped so far to make room for others.
        fixed: while above 0 there is no room for more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes, self.evictions, self.fixed = limit, 0, 0, 0
        self.lock = threading.RLock()
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Least recently used first."""
        return iter(list(self._entries.values()))

    def use(self, entry: Entry) -> None:
        """Note that an entry was needed now."""
        self._entries[id(entry)] = self._entries.pop(id(entry))

    def make_room(self, nbytes: int) -> bool:
        """Drop entries until so many bytes more are within the limit; False, with nothing dropped, where they cannot be."""
        if nbytes > self.limit or self.fixed:
            return False
        return self._shrink(self.limit - nbytes)

    def add(self, entry: Entry) -> None:
        """Keep an entry for which there is room."""
        self._entries[id(entry)] = entry
        self.nbytes += entry.nbytes

    def release(self, nbytes: int) -> None:
        """Drop entries that take at least so many bytes, as far as there are any that may go."""
        self._shrink(max(self.nbytes - nbytes, 0))

    def _shrink(self, most: int) -> bool:
        """Drop entries until at most so many bytes are taken; one that is held may be free once another has gone."""
        while self.nbytes > most:
            victim = next((entry for entry in self._entries.values() if not entry.held), None)
            if victim is None:
                return False
            del self._entries[id(victim)]
            self.nbytes -= victim.nbytes
            self.evictions += 1
            victim.forget()
        return True
