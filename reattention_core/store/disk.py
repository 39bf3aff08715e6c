"""The few ways in which this package changes a disk; knows nothing of what it writes. Tests break them one by one.

Everything is made for its owner alone. A file or folder counts as written once it was synced, and appears under its name by a
rename, so that a reader or a machine that dies meets all of it or nothing.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def make_folder(path: Path) -> None:
    """A new folder; those above it exist or are made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.mkdir(mode=0o700)


def write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """A new file of some parts, synced."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for part in parts:
            left = memoryview(part).cast("B")
            while left:
                left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def append(handle: int, line: str) -> None:
    """One more line in an open file, synced; it begins anew, should the disk have cut the line before it short."""
    data = f"\n{line}\n".encode()
    if os.write(handle, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(handle)


def rename(path: Path, target: Path) -> None:
    """Put a file or folder under its name, in place of a file of that name."""
    os.replace(path, target)
    sync(target.parent)


def sync(folder: Path) -> None:
    """Ask the disk to hold the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it; what cannot be deleted is left for the next time."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def to_json(content: Any) -> bytes:
    """JSON in the one form whose checksum is kept."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
