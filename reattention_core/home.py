"""Where this library keeps things on disk; knows only the folder."""

import os
from pathlib import Path


def home() -> Path:
    """`$REATTENTION_HOME`, or `reattention` in the user's cache folder."""
    named = os.environ.get("REATTENTION_HOME")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "reattention"
