"""Who may change a folder of corpora, and whether whoever began something still lives; knows nothing of what is kept there.

One lock (`flock`) guards the folder: readers share it while they open a corpus, a writer has it alone while it publishes,
both for milliseconds; keys and values are written without it. A lock is the kernel's, so it is gone with its process, however
that ends. Folders on a network file system need one whose locks work; on a read-only one, and
where the disk has no room for the lock, readers do without.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Nothing is published or deleted meanwhile."""
    try:
        handle = os.open(root / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        yield  # what cannot be written to changes little
        return
    with _held(handle, fcntl.LOCK_SH):
        yield


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Nobody else reads what there is, publishes or deletes meanwhile."""
    with _held(os.open(root / FILE, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX):
        yield


@contextmanager
def _held(handle: int, kind: int) -> Iterator[None]:
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def own(path: Path) -> int:
    """Make a file and hold its lock until the handle is closed, or this process ends."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def abandoned(path: Path) -> bool:
    """Whether nobody holds the lock of a file any more, or there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
