"""A tensor that grows along its tokens without being copied at every step; knows nothing of what it holds."""

import torch

from reattention_core.cache.pages import PAGE


class Growing:
    """Tokens [B, G, n, D] in preallocated storage that doubles when it is full (never `torch.cat` per step).

    Args:
        room: tokens there will be at most, where that is known: nothing is ever copied up to it.
    """

    def __init__(self, room: int = 0) -> None:
        self._data: torch.Tensor | None = None
        self._room = room
        self.n = 0

    def append(self, tokens: torch.Tensor) -> None:
        """Add tokens [B, G, m, D] at the end; the first call fixes B, G, D, type and device."""
        stop = self.n + tokens.shape[2]
        if self._data is None or stop > self._data.shape[2]:
            capacity = max(stop, 2 * self.n, self._room)
            capacity = -(-capacity // PAGE) * PAGE
            grown = tokens.new_empty(*tokens.shape[:2], capacity, tokens.shape[3])
            if self._data is not None:
                grown[:, :, : self.n] = self._data[:, :, : self.n]
            self._data = grown
        self._data[:, :, self.n : stop] = tokens
        self.n = stop

    def hold(self, tokens: torch.Tensor) -> None:
        """Begin with tokens [B, G, m, D] that nobody else holds, without a copy."""
        self._data, self.n = tokens, tokens.shape[2]

    @property
    def tokens(self) -> torch.Tensor:
        """What has been added so far, [B, G, n, D], a view."""
        if self._data is None:
            raise RuntimeError("nothing was appended yet: a bug in the caller")
        return self._data[:, :, : self.n]

    @property
    def storage(self) -> torch.Tensor:
        """The tokens and the room behind them, [B, G, capacity, D]; what stands beyond `n` means nothing."""
        if self._data is None:
            raise RuntimeError("nothing was appended yet: a bug in the caller")
        return self._data

    @property
    def nbytes(self) -> int:
        """Bytes held, the room to grow included."""
        return 0 if self._data is None else self._data.nbytes

    def crop(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self.n = max(self.n - n, 0)

    def take_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows of the batch, in the given order."""
        if self._data is not None:
            self._data = self._data.index_select(0, rows.to(self._data.device))
