"""Who has the model: one piece of work at a time, in the order it came, and no more waiting than allowed; knows no model.

Long reading gives way between its forward passes: whoever waits goes first, and the reading queues up again behind them. So a
question waits for the questions before it and for one pass of an ingest, and an ingest gets a pass after each of them.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from reattention_core.errors import CancelledError, EngineClosedError, QueueFullError
from reattention_core.prefill import Cancelled

POLL = 0.05
"""Seconds between two looks at whether someone who waits was cancelled."""


class _Turn:
    """One piece of work's place in the order."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.waited = 0.0

    def wait(self, cancelled: Cancelled) -> None:
        """Until it is this one's turn."""
        began = time.perf_counter()
        try:
            while not self.ready.wait(POLL):
                if cancelled():
                    raise CancelledError("cancelled while another request had the model")
        finally:
            self.waited += time.perf_counter() - began


class Turns:
    """The order of those who want the model. Threads may share it.

    Args:
        most_waiting: how many may wait.

    Attributes:
        closed: whether there are no more turns.
        waited: seconds that all who had it waited for it.
        ran: seconds that they had it.
        refused: how many were sent away because too many waited.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most, self._lock = most_waiting, threading.Lock()
        self._queue: deque[_Turn] = deque()
        self._holder: _Turn | None = None
        self.closed = False
        self.waited = self.ran = 0.0
        self.refused = 0

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue)

    @property
    def running(self) -> bool:
        """Whether someone has it now."""
        return self._holder is not None

    @contextmanager
    def turn(self, cancelled: Cancelled) -> Iterator[Cancelled]:
        """The model for one piece of work.

        Gives what long reading asks between two forward passes: those who wait go first, then whether to stop.

        Args:
            cancelled: asked while waiting.

        Raises:
            QueueFullError: as many wait as may.
            EngineClosedError: there are no more turns.
            CancelledError: `cancelled` said so before it was its turn.
        """
        with self._ordered(cancelled, bounded=True) as turn:
            self.check_open()

            def between() -> bool:
                if self._pass_on(turn, again=True):
                    turn.wait(cancelled)
                self.check_open()
                return cancelled()

            yield between

    @contextmanager
    def last(self) -> Iterator[None]:
        """A turn after which there are no more; who waits by then is told so."""
        with self._ordered(lambda: False, bounded=False):
            self.closed = True
            yield

    def check_open(self) -> None:
        """Refuse work that cannot get a turn any more.

        Raises:
            EngineClosedError: there are no more turns.
        """
        if self.closed:
            raise EngineClosedError("this engine was closed: make a new one")

    @contextmanager
    def _ordered(self, cancelled: Cancelled, bounded: bool) -> Iterator[_Turn]:
        """A place in the order, once its time has come; `bounded` ones are sent away where too many wait."""
        turn, began = _Turn(), time.perf_counter()
        with self._lock:
            if self._holder is None:
                self._hand_to(turn)
            elif bounded and len(self._queue) >= self._most:
                self.refused += 1
                raise QueueFullError(
                    f"{len(self._queue)} requests wait for the model, and max_waiting allows {self._most}: try again later, or "
                    "make the engine with a larger max_waiting",
                    waiting=len(self._queue),
                    limit=self._most,
                )
            else:
                self._queue.append(turn)
        try:
            turn.wait(cancelled)
            yield turn
        finally:
            self._pass_on(turn)
            with self._lock:
                self.waited += turn.waited
                self.ran += time.perf_counter() - began - turn.waited

    def _pass_on(self, turn: _Turn, again: bool = False) -> bool:
        """End a turn, whether it has begun or still waits.

        Args:
            turn: whose.
            again: whether it only goes behind those who wait, if there are any.

        Returns:
            Whether it was ended.
        """
        with self._lock:
            if self._holder is not turn:
                self._queue.remove(turn)
                return True
            if again and not self._queue:
                return False
            if again:
                turn.ready.clear()
                self._queue.append(turn)
            self._hand_to(self._queue.popleft() if self._queue else None)
            return True

    def _hand_to(self, turn: _Turn | None) -> None:
        self._holder = turn
        if turn is not None:
            turn.ready.set()
