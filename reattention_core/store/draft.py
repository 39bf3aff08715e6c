"""A corpus that is being made or edited, from the first document read to the published manifest; knows no model run.

Everything a draft needs is claimed in a file before it is relied on, so that nobody deletes it. Each pack that is written is
durable at once. A draft that is broken off after that leaves its claim, and the next draft finds the documents by their keys.
"""

import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors import SafetensorError

from reattention_core.cache.pages import PAGE, Pages, pages_for
from reattention_core.documents import Document
from reattention_core.edition import assembled
from reattention_core.errors import (
    CorpusError,
    CorpusExistsError,
    CorpusNotFoundError,
    CorruptCacheError,
    StorageFullError,
)
from reattention_core.sources import ReadDocument, Saved
from reattention_core.store import collecting, disk, locks
from reattention_core.store.about import About
from reattention_core.store.collecting import CLAIM, OWNER, PACKS, STAGE
from reattention_core.store.manifest import FILE, PACK_FILE, Entry, Manifest, PackUse, read_manifest
from reattention_core.store.packs import Pack, open_pack, read_pack, write_pack
from reattention_core.store.placing import gathered

logger = logging.getLogger(__name__)


class Draft:
    """A corpus that is being made or edited. Enter it, and publish at the end.

    Args:
        root: the folder of corpora.
        folder: the corpus's own.
        about: how it is read.
        base: the generation that is edited; None for a new corpus.
        may_replace: whether a corpus may be there that is not edited.
    """

    def __init__(self, root: Path, folder: Path, about: About, base: int | None, may_replace: bool) -> None:
        self._root, self._folder, self._packs = root, folder, root / PACKS
        self._about, self._base, self._may_replace = about, base, may_replace
        self._uses: dict[str, PackUse] = {}
        self._published = self._wrote = False

    def __enter__(self) -> Self:
        with self._writing(), locks.writing(self._root):
            self._packs.mkdir(exist_ok=True, mode=0o700)
            self._folder.mkdir(exist_ok=True, mode=0o700)
            collecting.set_aside(self._root)
            self._claim = self._folder / f"{CLAIM}{uuid.uuid4().hex}"
            self._claimed = locks.own(self._claim)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with collecting.emptying(self._root), locks.writing(self._root):
                if self._published or not self._wrote:
                    disk.remove(self._claim)
                if self._published:  # what an earlier ingest left was found again, or is of no use any more
                    for claim in collecting.claims(self._folder):
                        if locks.abandoned(claim):
                            disk.remove(claim)
                collecting.tidy_away(self._folder)
                collecting.set_aside(self._root)
        except OSError as failed:  # what is published is published
            logger.warning("%s is tidied up another time: %s", self._root, failed)
        finally:
            os.close(self._claimed)

    def check_room(self, needed: int) -> None:
        """Refuse what the disk cannot take, before it is read.

        Raises:
            StorageFullError: with both numbers.
        """
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise StorageFullError(
                f"corpus {self._folder.name!r} needs {needed:,} bytes and {free:,} are free in {self._root}: free some, or set "
                "REATTENTION_HOME to a larger disk"
            )

    def find(self, documents: Sequence[Document]) -> list[tuple[ReadDocument, Pages] | None]:
        """For each document, where it lies if it was read before, and the pages, mapped."""
        keys = self._about.keys(documents)
        places: dict[str, list[Saved]] = {key: [] for key in keys}
        with self._writing(), locks.writing(self._root):
            for folder in sorted(self._packs.glob("[0-9a-f]*")):
                for number, key in enumerate(self._keys_in(folder)):
                    if key in places:
                        places[key].append(Saved(folder.name, number, key))
            wanted = {place.pack for several in places.values() for place in several}
            packs = {name: pack for name in sorted(wanted) if (pack := self._open(name))}
        return [self._whole(document, places[key], packs) for document, key in zip(documents, keys, strict=True)]

    def _whole(
        self, document: Document, places: Sequence[Saved], packs: Mapping[str, Pack]
    ) -> tuple[ReadDocument, Pages] | None:
        """A document from the first of the places where nothing of it is damaged: all of it is read from disk."""
        for place in places:
            pack, n = packs.get(place.pack), place.number
            if pack is None:
                continue
            first = pack.starts[n] // PAGE
            try:
                pack.pages.check(first, first + pages_for(len(pack.spans[n])))
            except CorruptCacheError as error:
                logger.warning("a document is read again: %s", error)
                continue
            return ReadDocument(document, pack.spans[n], pack.starts[n], place), pack.pages
        return None

    def write(
        self, pages: Pages, documents: Sequence[ReadDocument], before: Sequence[ReadDocument] = ()
    ) -> list[ReadDocument]:
        """Make documents durable that were just read.

        Args:
            pages: that they lie in; page 0 is the sink's.
            documents: in the order of the corpus.
            before: those that stand before them there; in `joint` they belong to what was read.

        Raises:
            StorageFullError: the disk cannot take them.
        """
        keys = self._about.keys([document.document for document in (*before, *documents)])[len(before) :]
        return self._write(pages, documents, keys)

    def mapped(self, documents: Sequence[ReadDocument]) -> tuple[Pages, list[ReadDocument]]:
        """Documents that this draft wrote, mapped from disk where they lie."""
        places = [document.saved for document in documents if document.saved is not None]
        with self._writing():
            packs = {place.pack: self._packs / place.pack for place in places}
            opened = {name: open_pack(folder, self._uses[name], self._about.identity) for name, folder in packs.items()}
        parts = [
            (d.document, replace(d, start=opened[place.pack].starts[place.number]), opened[place.pack].pages)
            for d, place in zip(documents, places, strict=True)
        ]
        return assembled(parts[0][2], parts)

    def publish(self, pages: Pages, documents: Sequence[ReadDocument]) -> tuple[Manifest, list[ReadDocument]]:
        """Make this the corpus of the name, at one moment.

        Args:
            pages: all of its pages.
            documents: all of its documents.

        Returns:
            The manifest, and the documents with their places on disk.

        Raises:
            CorpusExistsError: another process published something else under the name meanwhile.
            CorpusNotFoundError: the corpus that is edited was removed meanwhile.
            StorageFullError: the disk cannot take it; what was published before is still there.
        """
        keys = self._about.keys([document.document for document in documents])
        with self._writing(), locks.writing(self._root):
            documents = self._settled(documents)
        fresh = [number for number, document in enumerate(documents) if document.saved is None]
        documents = list(documents)
        if fresh or not documents:
            written = self._write(pages, [documents[n] for n in fresh], [keys[n] for n in fresh])
            for number, document in zip(fresh, written, strict=True):
                documents[number] = document
        with self._writing(), locks.writing(self._root):
            known = self._known()
            if known is not None and self._is_same(known, documents):
                manifest = known
            else:
                manifest = self._manifest(pages, documents, 1 if known is None else known.generation + 1)
                new = self._folder / f"{self._claim.name}.new"
                disk.remove(new)
                disk.write(new, (manifest.to_json(),))
                disk.rename(new, self._folder / FILE)
            self._published = True
        return manifest, documents

    def _known(self) -> Manifest | None:
        """What is published under the name now, if it is what was expected there."""
        name = self._folder.name
        try:
            known = read_manifest(self._folder)
        except CorpusNotFoundError:
            if self._base is not None:
                raise CorpusNotFoundError(f"corpus {name!r} was removed since it was opened: ingest it again") from None
            return None
        except CorpusError:
            if self._may_replace:
                return None
            raise
        if self._base is not None and known.generation != self._base:
            raise CorpusExistsError(
                f"corpus {name!r} was changed by another process since it was opened (it is at generation {known.generation}, "
                f"was opened at {self._base}): open it again and repeat the edit, which will not read its documents again"
            )
        return known

    def _is_same(self, known: Manifest, documents: Sequence[ReadDocument]) -> bool:
        """Whether a corpus that somebody else published meanwhile is just this one.

        Raises:
            CorpusExistsError: it is another, and may not be replaced.
        """
        if self._base is not None or self._may_replace:
            return False
        ours = [(d.document.id, d.document.source, d.document.metadata, d.saved and d.saved.key) for d in documents]
        if ours == [(e.id, e.source, e.metadata, e.key) for e in known.documents]:
            return True
        raise CorpusExistsError(
            f"another process saved a corpus {self._folder.name!r} meanwhile: choose another name, or pass replace=True "
            "(--replace); the documents will not be read again"
        )

    def _manifest(self, pages: Pages, documents: Sequence[ReadDocument], generation: int) -> Manifest:
        places = [d.saved for d in documents if d.saved is not None]
        used = {place.pack for place in places} or set(list(self._uses)[-1:])
        return Manifest.model_validate(
            {
                "generation": generation,
                "model": self._about.model,
                "mode": self._about.mode,
                "fingerprint": self._about.fingerprint,
                "rule": self._about.rule,
                "summary_size": pages.summary_size,
                "sink": places[0].pack if places else next(iter(used)),
                "packs": {name: self._uses[name] for name in sorted(used)},
                "documents": [
                    Entry(
                        id=d.document.id,
                        source=d.document.source,
                        metadata=d.document.metadata,
                        pack=place.pack,
                        number=place.number,
                        key=place.key,
                        n_tokens=d.n_tokens,
                    )
                    for d, place in zip(documents, places, strict=True)
                ],
            }
        )

    def _write(self, pages: Pages, documents: Sequence[ReadDocument], keys: Sequence[str]) -> list[ReadDocument]:
        name = uuid.uuid4().hex
        stage = self._packs / f"{STAGE}{name}"
        with self._writing():
            with locks.writing(self._root):
                disk.make_folder(stage)
                owned = locks.own(stage / OWNER)
            try:
                use = write_pack(stage, pages, documents, keys, self._about.identity)
                with locks.writing(self._root):
                    self._claim_pack(name, use)
                    disk.remove(stage / OWNER)
                    disk.rename(stage, self._packs / name)
                self._wrote = True
            except BaseException:
                disk.remove(stage)
                raise
            finally:
                os.close(owned)
        return [replace(d, saved=Saved(name, n, keys[n])) for n, d in enumerate(documents)]

    def _settled(self, documents: Sequence[ReadDocument]) -> list[ReadDocument]:
        """The documents, those without a place that must be written: new ones, lost ones, and those that lie badly."""
        wanted = {d.saved.pack for d in documents if d.saved is not None}
        sizes = {name: pages for name in sorted(wanted) if (pages := self._pages_in(name))}
        elsewhere = collecting.needed(self._root, self._folder)
        used = dict.fromkeys(sizes, 0)
        for d in documents:
            if d.saved is not None and d.saved.pack in used:
                used[d.saved.pack] += pages_for(d.n_tokens)
        wasted = {n for n in sizes if 2 * used[n] < sizes[n] and elsewhere is not None and n not in elsewhere}
        kept = [
            d
            if d.saved is not None and d.saved.pack in sizes and d.saved.pack not in wasted
            else replace(d, saved=None)
            for d in documents
        ]
        return gathered(kept)

    def _pages_in(self, name: str) -> int:
        """Pages of a pack's documents, once it is claimed; 0 where it is gone."""
        try:
            manifest = read_pack(self._packs / name)
        except CorpusError:
            return 0
        self._claim_pack(name, _use_of(self._packs / name))
        return sum(pages_for(segment.n_tokens) for segment in manifest.segments)

    def _keys_in(self, folder: Path) -> list[str]:
        try:
            pack = read_pack(folder)
        except CorpusError as error:
            logger.warning("not looked into: %s", error)
            return []
        return [segment.key for segment in pack.segments] if pack.identity == self._about.identity else []

    def _open(self, name: str) -> Pack | None:
        """A pack, claimed; None where it is damaged, so that its documents are read again."""
        try:
            use = _use_of(self._packs / name)
            pack = open_pack(self._packs / name, use, self._about.identity)
            pack.pages.check(0, 1)
        except (CorpusError, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("its documents are read again: %s", error)
            return None
        self._claim_pack(name, use)
        return pack

    def _claim_pack(self, name: str, use: PackUse) -> None:
        """Keep a pack from being deleted; the folder's lock is held."""
        if name not in self._uses:
            disk.append(self._claimed, f"{name}\n")
        self._uses[name] = use

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what a disk refuses into an error of ours."""
        try:
            yield
        except OSError as error:
            raise StorageFullError(f"corpus {self._folder.name!r} could not be written: {error}") from error


def _use_of(folder: Path) -> PackUse:
    data = (folder / PACK_FILE).read_bytes()
    manifest = read_pack(folder)
    return PackUse(bytes=sum(manifest.bytes.values()) + len(data), crc32=zlib.crc32(data))
