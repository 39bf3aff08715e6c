"""Corpora on disk: safetensors and a manifest, published whole or not at all; knows no model run and no question.

    <root>/<name>/manifest.json         written last: fingerprint, documents, sizes
                  documents.json        texts, titles, origins
                  tokens.safetensors    page table and the tokens' characters
                  layer_000.safetensors keys and values [G, P, 32, D]; opened lazily, page by page

A save writes a folder `.stage-…` beside it, syncs it and renames it, so a reader meets the old corpus or the new one.
Nothing is ever unpickled.
"""

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

from reattention_core.cache.pages import Pages
from reattention_core.documents import Document
from reattention_core.errors import (
    CacheVersionError,
    CorpusExistsError,
    CorpusNotFoundError,
    CorruptCacheError,
    FingerprintMismatchError,
    InvalidRequestError,
    PartialCacheError,
    StorageFullError,
)
from reattention_core.sources import ReadDocument

VERSION = 1
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
    manifest: dict[str, Any]


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

    def save(self, name: str, pages: Pages, documents: Sequence[ReadDocument], about: dict[str, Any]) -> None:
        """Publish a corpus under a name; a corpus of that name is replaced once the new one is complete.

        Raises:
            StorageFullError: the disk cannot take it; nothing is left behind.
        """
        folder = self._folder(name)
        self._make_root()
        free = shutil.disk_usage(self._root).free
        if pages.nbytes > free:
            raise StorageFullError(
                f"corpus {name!r} needs {pages.nbytes:,} bytes and {free:,} are free in {self._root}: free some, or set "
                "REATTENTION_HOME to a larger disk"
            )
        stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=self._root))
        try:
            self._write(stage, pages, documents, about)
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=".old-", dir=self._root))
                os.rename(folder, old / name)
                os.rename(stage, folder)
                shutil.rmtree(old)
            else:
                os.rename(stage, folder)
            _sync(self._root)
        except (OSError, SafetensorError) as error:
            raise StorageFullError(f"corpus {name!r} could not be written: {error}") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFullError(
                f"the folder of corpora cannot be made: {error}; choose another (--store)"
            ) from error

    def _write(self, stage: Path, pages: Pages, documents: Sequence[ReadDocument], about: dict[str, Any]) -> None:
        spans = [span for document in documents for span in document.spans]
        save_file(
            {
                "filled": pages.filled.cpu(),
                "first": pages.first.cpu(),
                "spans": torch.tensor(spans, dtype=torch.int32),
            },
            stage / "tokens.safetensors",
        )
        for index, (keys, values) in enumerate(zip(pages.keys, pages.values, strict=True)):
            tensors = {"keys": keys.cpu().contiguous(), "values": values.cpu().contiguous()}
            if pages.summaries:
                tensors["summaries"] = pages.summaries[index].cpu().contiguous()
            save_file(tensors, stage / _layer_file(index))
        texts = [document.document.model_dump() for document in documents]
        (stage / "documents.json").write_text(json.dumps(texts))
        manifest = {
            **about,
            "format": "reattention-corpus",
            "version": VERSION,
            "layers": len(pages.keys),
            "summary_size": pages.summary_size,
            "documents": [{"start": d.start, "n_tokens": d.n_tokens} for d in documents],
            "bytes": {file.name: file.stat().st_size for file in sorted(stage.iterdir())},
        }
        for file in stage.iterdir():
            _sync(file)
        (stage / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _sync(stage / "manifest.json")
        _sync(stage)

    def load(self, name: str, fingerprint: dict[str, str], device: torch.device) -> SavedCorpus:
        """Open a corpus; on a CPU its pages stay on disk until they are read.

        Args:
            name: of the corpus.
            fingerprint: what the running model is; see `Engine.fingerprint`.
            device: where the pages are wanted.

        Raises:
            CorpusNotFoundError: no such corpus.
            FingerprintMismatchError: it was read by another model; `fields` names what differs.
            CacheVersionError: written by a newer version of this library.
            PartialCacheError: a file is missing or has another length.
            CorruptCacheError: a file cannot be read.
        """
        manifest = self.manifest(name)
        folder = self._folder(name)
        saved = manifest.get("fingerprint", {})
        different = [f for f in sorted({*fingerprint, *saved}) if fingerprint.get(f) != saved.get(f)]
        if different:
            shown = "; ".join(f"{f}: saved {saved.get(f)!r}, now {fingerprint.get(f)!r}" for f in different)
            raise FingerprintMismatchError(
                f"corpus {name!r} was read by another model ({shown}): load that model, or ingest the documents again",
                fields=tuple(different),
            )
        for file, size in manifest["bytes"].items():
            path = folder / file
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise PartialCacheError(
                    f"corpus {name!r}: {file} has {found:,} bytes instead of {size:,}; remove the corpus and ingest it again"
                )
        try:
            return self._read(folder, manifest, device)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptCacheError(
                f"corpus {name!r} cannot be read ({error}); remove it and ingest it again"
            ) from error

    def _read(self, folder: Path, manifest: dict[str, Any], device: torch.device) -> SavedCorpus:
        place = str(device)
        with safe_open(folder / "tokens.safetensors", framework="pt", device="cpu") as file:
            filled, first = file.get_tensor("filled"), file.get_tensor("first")
            spans = file.get_tensor("spans").tolist()
        keys, values, summaries = [], [], []
        for index in range(manifest["layers"]):
            with safe_open(folder / _layer_file(index), framework="pt", device=place) as file:
                keys.append(file.get_tensor("keys"))
                values.append(file.get_tensor("values"))
                if manifest["summary_size"]:
                    summaries.append(file.get_tensor("summaries"))
        texts = json.loads((folder / "documents.json").read_text())
        documents, at = [], 0
        for text, place_of in zip(texts, manifest["documents"], strict=True):
            own = [(a, b) for a, b in spans[at : at + place_of["n_tokens"]]]
            documents.append(ReadDocument(Document(**text), own, place_of["start"]))
            at += place_of["n_tokens"]
        table = filled.to(device), first.to(device)
        pages = Pages(keys, values, *table, summaries, manifest["summary_size"])
        return SavedCorpus(pages, documents, manifest)

    def manifest(self, name: str) -> dict[str, Any]:
        """A corpus's manifest.

        Raises:
            CorpusNotFoundError: no such corpus; says which there are.
            CorruptCacheError: it is no manifest of ours.
            CacheVersionError: it is a newer version's.
        """
        path = self._folder(name) / "manifest.json"
        if not path.exists():
            known = ", ".join(self.names()) or "none"
            raise CorpusNotFoundError(f"there is no corpus {name!r} in {self._root} (there are: {known})")
        try:
            manifest = json.loads(path.read_text())
            version = manifest["version"]
            if manifest["format"] != "reattention-corpus" or not isinstance(version, int):
                raise ValueError("not a corpus manifest")
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptCacheError(
                f"corpus {name!r}: its manifest cannot be read ({error}); remove it and ingest it again"
            ) from error
        if version > VERSION:
            raise CacheVersionError(
                f"corpus {name!r} has format version {version}, this library reads up to {VERSION}: update reattention"
            )
        return dict(manifest)

    def names(self) -> list[str]:
        """Names of all corpora, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(p.name for p in self._root.iterdir() if (p / "manifest.json").exists())

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


def _layer_file(index: int) -> str:
    return f"layer_{index:03}.safetensors"


def _sync(path: Path) -> None:
    """Ask the disk to really hold a file or folder; safetensors does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
