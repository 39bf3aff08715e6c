"""Which packs are needed, and the deleting of those that are not; knows no tensors and no documents.

A pack is needed while a manifest names it, or the claim of an ingest that is under way or was broken off. Whoever publishes or
removes moves what is not needed out of sight while it holds the folder's lock, and deletes it afterwards. Where a manifest
cannot be read nobody knows what it needs: then nothing is deleted.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reattention_core.store import disk, locks
from reattention_core.store.manifest import FILE

PACKS = ".packs"
STAGE = ".stage-"
GONE = ".gone-"
OWNER = "owner"
CLAIM = "unfinished-"


def claims(folder: Path) -> list[Path]:
    """The claims of ingests under a name."""
    return sorted(folder.glob(f"{CLAIM}*")) if folder.is_dir() else []


def needed(root: Path, other_than: Path | None = None) -> set[str] | None:
    """Ids of all packs that somebody needs; None where that cannot be known.

    Args:
        root: the folder of corpora.
        other_than: the folder of a corpus that is left out.
    """
    found: set[str] = set()
    for folder in root.iterdir():
        if folder.name.startswith(".") or not folder.is_dir() or folder == other_than:
            continue
        try:
            if (folder / FILE).exists():
                found |= set(json.loads((folder / FILE).read_bytes())["packs"])
            for claim in claims(folder):
                found |= set(claim.read_text().split())
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return found


def set_aside(root: Path) -> None:
    """Move packs that nobody needs, and stages whose owner is gone, out of sight; the folder's lock is held."""
    packs, wanted = root / PACKS, needed(root)
    if wanted is None or not packs.is_dir():
        return
    for path in packs.iterdir():
        if path.name.startswith(GONE):
            continue
        stage = path.name.startswith(STAGE)
        if locks.abandoned(path / OWNER) if stage else path.name not in wanted:
            with suppress(OSError):  # what cannot be moved stays for the next time
                path.rename(packs / f"{GONE}{uuid.uuid4().hex}")


@contextmanager
def emptying(root: Path) -> Iterator[None]:
    """Deletes at the end what was set aside, when no lock is held any more."""
    yield
    for path in (root / PACKS).glob(f"{GONE}*"):
        disk.remove(path)


def tidy_away(folder: Path) -> None:
    """Delete a corpus's folder if nothing is left in it."""
    with suppress(OSError):
        folder.rmdir()
