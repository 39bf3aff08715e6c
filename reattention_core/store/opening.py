"""Opens a published corpus: its packs mapped, its documents in their order; knows no writing and no model run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from reattention_core.cache.pages import Pages
from reattention_core.cache.stitched import onto
from reattention_core.documents import Document
from reattention_core.edition import assembled
from reattention_core.errors import CorpusError, CorruptCacheError, FingerprintMismatchError, PartialCacheError
from reattention_core.sources import ReadDocument, Saved
from reattention_core.store import locks
from reattention_core.store.about import About
from reattention_core.store.collecting import PACKS
from reattention_core.store.manifest import Manifest, read_manifest
from reattention_core.store.packs import Pack, open_pack


@dataclass(frozen=True)
class SavedCorpus:
    """What was published under a name.

    Attributes:
        pages: keys and values; on a CPU mapped from disk.
        documents: texts and where their tokens lie.
        manifest: the manifest as read.
    """

    pages: Pages
    documents: list[ReadDocument]
    manifest: Manifest


def load(root: Path, folder: Path, fingerprint: dict[str, str], device: torch.device) -> SavedCorpus:
    """See `Store.load`."""
    with _undisturbed(root, folder.name):
        saved = _mapped(root, folder, fingerprint)
    return saved if device.type == "cpu" else replace(saved, pages=onto(saved.pages, device))


def _mapped(root: Path, folder: Path, fingerprint: dict[str, str]) -> SavedCorpus:
    manifest = read_manifest(folder)
    saved = manifest.fingerprint
    different = [f for f in sorted({*fingerprint, *saved}) if fingerprint.get(f) != saved.get(f)]
    if different:
        shown = "; ".join(f"{f}: saved {saved.get(f)!r}, now {fingerprint.get(f)!r}" for f in different)
        wanted = manifest.model or "that model"
        if "dtype" in different:
            wanted += f" with dtype={saved.get('dtype')!r}"
        raise FingerprintMismatchError(
            f"corpus {folder.name!r} was read by another model ({shown}): load {wanted}, or ingest the documents again",
            fields=tuple(different),
        )
    packs = _opened(root, folder.name, manifest)
    parts = []
    for entry in manifest.documents:
        pack, n = packs[entry.pack], entry.number
        title, text = pack.texts[n]
        document = Document(title=title, text=text, id=entry.id, source=entry.source, metadata=entry.metadata)
        read = ReadDocument(document, pack.spans[n], pack.starts[n], Saved(entry.pack, n, entry.key))
        parts.append((document, read, pack.pages))
    packs[manifest.sink].pages.expect(0, 1)  # it is read first, wherever a layer has it
    pages, documents = assembled(packs[manifest.sink].pages, parts)
    return SavedCorpus(pages, documents, manifest)


def verify(root: Path, folder: Path) -> Manifest:
    """See `Store.verify`."""
    with _undisturbed(root, folder.name):
        manifest = read_manifest(folder)
        packs = _opened(root, folder.name, manifest)
    try:
        for pack in packs.values():
            pack.pages.check(0, pack.pages.n_pages)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"corpus {folder.name!r}: {error}") from error
    return manifest


@contextmanager
def _undisturbed(root: Path, name: str) -> Iterator[None]:
    """Nothing is published or deleted meanwhile.

    Raises:
        CorpusError: the disk does not say so now.
    """
    try:
        with locks.reading(root):
            yield
    except OSError as error:  # too many open files, a disk that answers no more: nothing says that anything is damaged
        raise CorpusError(f"corpus {name!r} cannot be read now ({error}); try again") from error


def _opened(root: Path, name: str, manifest: Manifest) -> dict[str, Pack]:
    """The packs of a corpus, each document where the corpus says it is.

    Raises:
        CorpusError: something is missing or damaged.
    """
    identity = About("", manifest.mode, manifest.fingerprint).identity
    packs: dict[str, Pack] = {}
    try:
        for pack, use in manifest.packs.items():
            packs[pack] = open_pack(root / PACKS / pack, use, identity)
        for entry in manifest.documents:
            found = packs[entry.pack].manifest.segments[entry.number]
            if (found.key, found.n_tokens) != (entry.key, entry.n_tokens):
                raise ValueError(f"document {entry.id!r} is not where it should be")
        if any(pack.manifest.summary_size != manifest.summary_size for pack in packs.values()):
            raise ValueError("its packs sum up documents in different ways")
    except CorpusError as error:
        raise type(error)(f"corpus {name!r}: {error}; ingest it again with replace=True (--replace)") from error
    except FileNotFoundError as error:
        raise PartialCacheError(f"corpus {name!r}: {error}; ingest it again with replace=True (--replace)") from error
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptCacheError(
            f"corpus {name!r} cannot be read ({error}); ingest it again with replace=True (--replace)"
        ) from error
    return packs
