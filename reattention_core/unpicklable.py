"""What belongs to one process: neither pickled nor copied; knows nothing of what that is."""

from typing import Any


class Unpicklable:
    """Refuses to be pickled or copied, and says what to do instead."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Called by pickle and copy.

        Raises:
            TypeError: always, as for everything that cannot be pickled.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: it holds a model and gigabytes of keys and values. Ingest under a "
            "name, and in the other process make an engine and open that name; in one process threads can share it"
        )
