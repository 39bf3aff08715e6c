"""Corpora on disk: safetensors and a manifest, published whole or not at all; knows no model run and no question.

    <root>/<name>/manifest.json         written last: fingerprint, documents, sizes
                  documents.json        texts, titles, origins
                  tokens.safetensors    page table and the tokens' characters
                  layer_000.safetensors keys and values [G, P, 32, D]; opened lazily, page by page

A save writes a folder `.stage-…` beside it, syncs it and renames it, so a reader meets the old corpus or the new one.
Only a machine that dies between the two renames of a replacement leaves the name empty, and the old corpus in `.old-…`.
Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.documents import Document
from reattention_core.errors import (
    CorpusExistsError,
    CorpusNotFoundError,
    CorruptCacheError,
    FingerprintMismatchError,
    InvalidRequestError,
    StorageFullError,
)
from reattention_core.manifest import FILE, Manifest, Place, checksum, layer_file, read_manifest
from reattention_core.sources import ReadDocument

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class SavedCorpus:
    """What a folder holds.

    Attributes:
        pages: keys and values, lazily mapped from disk.
        documents: texts and where their tokens lie.
        manifest: the manifest as read.
    """

    pages: Pages
    documents: list[ReadDocument]
    manifest: Manifest


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
        if self._folder(name).exists() and not replace:
            raise CorpusExistsError(
                f"there is a corpus {name!r} already: open it, choose another name, or pass replace=True (--replace)"
            )
        self._make_root()

    def check_room(self, name: str, needed: int) -> None:
        """Refuse a corpus that the disk cannot take, before it is read.

        Raises:
            StorageFullError: with both numbers.
        """
        self._make_root()
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise StorageFullError(
                f"corpus {name!r} needs {needed:,} bytes and {free:,} are free in {self._root}: free some, or set "
                "REATTENTION_HOME to a larger disk"
            )

    def save(self, name: str, pages: Pages, documents: Sequence[ReadDocument], about: dict[str, Any]) -> None:
        """Publish a corpus under a name; a corpus of that name is replaced once the new one is complete.

        Args:
            name: of the corpus.
            pages: its keys and values.
            documents: its texts.
            about: the manifest's model, mode and fingerprint.

        Raises:
            StorageFullError: the disk cannot take it; nothing is left behind.
        """
        folder = self._folder(name)
        self.check_room(name, pages.nbytes)
        scratch: list[Path] = []
        try:
            scratch.append(Path(tempfile.mkdtemp(prefix=".stage-", dir=self._root)))
            self._write(scratch[0], pages, documents, about)
            if folder.exists():
                scratch.append(Path(tempfile.mkdtemp(prefix=".old-", dir=self._root)))
                self._exchange(folder, *scratch)
            else:
                os.rename(scratch[0], folder)
            _sync(self._root)
        except (OSError, SafetensorError) as error:
            raise StorageFullError(f"corpus {name!r} could not be written: {error}") from error
        finally:
            for left in scratch:
                shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def _exchange(folder: Path, stage: Path, old: Path) -> None:
        """Put the new corpus where the old one was, or leave the old one there."""
        os.rename(folder, old / folder.name)
        try:
            os.rename(stage, folder)
        except BaseException:
            os.rename(old / folder.name, folder)
            raise

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFullError(
                f"the folder of corpora cannot be made: {error}; choose another (--store)"
            ) from error

    def _write(self, stage: Path, pages: Pages, documents: Sequence[ReadDocument], about: dict[str, Any]) -> None:
        tables = {
            "filled": pages.filled.cpu(),
            "first": pages.first.cpu(),
            "spans": torch.cat([torch.empty(0, 2, dtype=torch.int32), *(document.spans for document in documents)]),
        }
        save_file(tables, stage / "tokens.safetensors")
        for index, (keys, values) in enumerate(zip(pages.keys, pages.values, strict=True)):
            tensors = {"keys": keys.cpu().contiguous(), "values": values.cpu().contiguous()}
            if pages.summaries:
                tensors["summaries"] = pages.summaries[index].cpu().contiguous()
            save_file(tensors, stage / layer_file(index))
        texts = [document.document.model_dump() for document in documents]
        (stage / "documents.json").write_text(json.dumps(texts))
        files = sorted(stage.iterdir())
        manifest = Manifest(
            **about,
            layers=len(pages.keys),
            summary_size=pages.summary_size,
            documents=[Place(start=d.start, n_tokens=d.n_tokens) for d in documents],
            bytes={file.name: file.stat().st_size for file in files},
            crc32={file.name: checksum(file) for file in files},
        )
        for file in files:
            _sync(file)
        (stage / FILE).write_text(manifest.model_dump_json(indent=1))
        _sync(stage / FILE)
        _sync(stage)

    def load(self, name: str, fingerprint: dict[str, str], device: torch.device) -> SavedCorpus:
        """Open a corpus; on a CPU its pages stay on disk until they are read.

        Args:
            name: of the corpus.
            fingerprint: what the running model is; see `Engine.identity`.
            device: where the pages are wanted.

        Raises:
            CorpusNotFoundError: no such corpus.
            FingerprintMismatchError: it was read by another model; `fields` names what differs.
            CacheVersionError: written by a newer version of this library.
            PartialCacheError: a file is missing or has another length.
            CorruptCacheError: a file is damaged.
        """
        manifest, folder = self.manifest(name), self._folder(name)
        saved = manifest.fingerprint
        different = [f for f in sorted({*fingerprint, *saved}) if fingerprint.get(f) != saved.get(f)]
        if different:
            shown = "; ".join(f"{f}: saved {saved.get(f)!r}, now {fingerprint.get(f)!r}" for f in different)
            raise FingerprintMismatchError(
                f"corpus {name!r} was read by another model ({shown}): load {manifest.model or 'that model'}, or ingest the "
                "documents again",
                fields=tuple(different),
            )
        manifest.check_files(folder)
        try:
            return self._read(folder, manifest, device)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptCacheError(
                f"corpus {name!r} cannot be read ({error}); remove it and ingest it again"
            ) from error

    def _read(self, folder: Path, manifest: Manifest, device: torch.device) -> SavedCorpus:
        lengths = [place.n_tokens for place in manifest.documents]
        layout = lay_out(lengths)
        if layout.starts != tuple(place.start for place in manifest.documents):
            raise ValueError("documents do not lie where their lengths put them")
        with safe_open(folder / "tokens.safetensors", framework="pt", device="cpu") as file:
            filled, first = file.get_tensor("filled"), file.get_tensor("first")
            spans = file.get_tensor("spans")
        if not torch.equal(first, layout.first) or spans.shape != (sum(lengths), 2) or spans.dtype != torch.int32:
            raise ValueError("the page table does not fit the documents")
        keys, values, summaries = [], [], []
        for index in range(manifest.layers):
            with safe_open(folder / layer_file(index), framework="pt", device=str(device)) as file:
                keys.append(file.get_tensor("keys"))
                values.append(file.get_tensor("values"))
                if manifest.summary_size:
                    summaries.append(file.get_tensor("summaries"))
        if any(t.dim() != 4 or t.shape[1:3] != (len(first), PAGE) for t in (*keys, *values)):
            raise ValueError("a layer's pages do not fit the page table")
        texts = json.loads((folder / "documents.json").read_text())
        documents, at = [], 0
        for text, place in zip(texts, manifest.documents, strict=True):
            own = spans[at : at + place.n_tokens].clone()
            documents.append(ReadDocument(Document(**text), own, place.start))
            at += place.n_tokens
        pages = Pages(keys, values, filled.to(device), first.to(device), summaries, manifest.summary_size)
        return SavedCorpus(pages, documents, manifest)

    def manifest(self, name: str) -> Manifest:
        """A corpus's manifest.

        Raises:
            CorpusNotFoundError: no such corpus; says which there are.
            CorruptCacheError: it is no manifest of ours.
            CacheVersionError: it is a newer version's.
        """
        folder = self._folder(name)
        if not (folder / FILE).exists():
            known = ", ".join(self.names()) or "none"
            raise CorpusNotFoundError(f"there is no corpus {name!r} in {self._root} (there are: {known})")
        return read_manifest(folder)

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
        if not self._root.is_dir():
            return []
        return sorted(p.name for p in self._root.iterdir() if NAME.fullmatch(p.name) and (p / FILE).exists())

    def remove(self, name: str) -> None:
        """Delete a corpus from disk.

        Raises:
            CorpusNotFoundError: no such corpus.
        """
        folder = self._folder(name)
        if not folder.exists():
            self.manifest(name)
        shutil.rmtree(folder)

    def _folder(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidRequestError(
                f"a corpus name has 1 to 64 of a-z, 0-9, '.', '_' and '-' and starts with a letter or digit, got {name!r}"
            )
        return self._root / name


def _sync(path: Path) -> None:
    """Ask the disk to really hold a file or folder; safetensors does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
