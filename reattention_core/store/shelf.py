"""The corpora in one folder by name: what there is, and what to do with one; knows no tensors, so that it is quick to import."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from reattention_core.errors import (
    CorpusExistsError,
    CorpusNotFoundError,
    InvalidRequestError,
    StorageFullError,
)
from reattention_core.store import collecting, disk, locks
from reattention_core.store.manifest import FILE, Manifest, read_manifest

if TYPE_CHECKING:
    import torch

    from reattention_core.store.about import About
    from reattention_core.store.draft import Draft
    from reattention_core.store.opening import SavedCorpus

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Store:
    """The corpora in one folder.

    Args:
        root: the folder; made on first save.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def check_free(self, name: str, replace: bool) -> None:
        """Refuse a name before any work is done for it.

        Raises:
            InvalidRequestError: not a name.
            CorpusExistsError: taken, and `replace` is not set.
            StorageFullError: the folder of corpora cannot be made.
        """
        if (self._folder(name) / FILE).exists() and not replace:
            raise CorpusExistsError(
                f"there is a corpus {name!r} already: open it, choose another name, or pass replace=True (--replace)"
            )
        self._make_root()

    def draft(self, name: str, about: "About", base: int | None = None, replace: bool = False) -> "Draft":
        """A corpus that is being made or edited; see `Draft`.

        Args:
            name: to publish it under.
            about: how it is read.
            base: the generation that is edited; None for a new corpus.
            replace: whether a corpus of that name may be there.
        """
        from reattention_core.store.draft import Draft

        self._make_root()
        return Draft(self._root, self._folder(name), about, base, replace)

    def load(self, name: str, fingerprint: dict[str, str], device: "torch.device") -> "SavedCorpus":
        """Open a corpus; on a CPU its pages stay on disk until they are read.

        Args:
            name: of the corpus.
            fingerprint: what the running model is; see `Engine.identity`.
            device: where the pages are wanted.

        Raises:
            CorpusNotFoundError: no such corpus.
            FingerprintMismatchError: it was read by another model; `fields` names what differs.
            CacheVersionError: written by another version of this library.
            PartialCacheError: a file is missing or has another length.
            CorruptCacheError: a file is damaged.
        """
        from reattention_core.store.opening import load

        return load(self._root, self._known(name), fingerprint, device)

    def verify(self, name: str) -> Manifest:
        """Read every byte of a corpus and compare it with the checksums.

        Raises:
            CorpusError: something is damaged or missing; the message says what.
            CorpusNotFoundError: no such corpus.
        """
        from reattention_core.store.opening import verify

        return verify(self._root, self._known(name))

    def manifest(self, name: str) -> Manifest:
        """A corpus's manifest.

        Raises:
            CorpusNotFoundError: no such corpus; says which there are.
            CorruptCacheError: it is no manifest of ours.
            CacheVersionError: it is another version's.
        """
        return read_manifest(self._known(name))

    def digest(self, name: str) -> str | None:
        """A short name of what is in a corpus, without opening it; None if there is none of that name.

        Other documents saved under the same name have another one, so that remembered answers can be told apart.
        """
        try:
            manifest = (self._folder(name) / FILE).read_bytes()
        except OSError:
            return None
        return hashlib.sha256(manifest).hexdigest()[:16]

    def names(self) -> list[str]:
        """Names of all corpora, sorted."""
        return sorted(folder.name for folder in self._folders() if (folder / FILE).exists())

    def unfinished(self) -> list[str]:
        """Names under which an ingest is under way or was broken off; the same ingest goes on where that one stopped."""
        return sorted(folder.name for folder in self._folders() if collecting.claims(folder))

    def remove(self, name: str) -> None:
        """Delete a corpus from disk, and what is left of ingests under its name; what other corpora share stays.

        Raises:
            CorpusNotFoundError: no such corpus.
            StorageFullError: the disk does not let it be deleted.
        """
        folder = self._folder(name)
        if name not in self.unfinished():
            self._known(name)
        try:
            with collecting.emptying(self._root), locks.writing(self._root):
                (folder / FILE).unlink(missing_ok=True)
                disk.sync(folder)
                for claim in collecting.claims(folder):
                    if locks.abandoned(claim):
                        disk.remove(claim)
                collecting.tidy_away(folder)
                collecting.set_aside(self._root)
        except OSError as error:
            raise StorageFullError(f"corpus {name!r} could not be removed: {error}") from error

    def _folders(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [
            path
            for path in self._root.iterdir()
            if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ]

    def _known(self, name: str) -> Path:
        folder = self._folder(name)
        if not (folder / FILE).exists():
            known = ", ".join(self.names()) or "none"
            raise CorpusNotFoundError(f"there is no corpus {name!r} in {self._root} (there are: {known})")
        return folder

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFullError(
                f"the folder of corpora cannot be made: {error}; choose another (--store)"
            ) from error

    def _folder(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidRequestError(
                f"a corpus name has 1 to 64 of a-z, 0-9, '.', '_' and '-' and starts with a letter or digit, got {name!r}"
            )
        folder = self._root / name
        if folder.is_symlink():
            raise InvalidRequestError(
                f"{folder} is a link: corpora are kept in folders of their own; choose another name"
            )
        return folder
