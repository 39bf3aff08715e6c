"""What saved packs and corpora say of themselves, checked before anything else of them is believed; knows no tensors.

Checksums find damage, not tampering: who can write the files can write the sums. A corpus's manifest sums up itself and the
manifests of its packs, and those sum up the packs' files, so that one changed byte anywhere is noticed: at opening, except in
the pages of keys and values themselves, which are held against their sums when they are first read (`mapped`).
"""

import json
import zlib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from reattention_core.errors import CacheVersionError, CorpusNotFoundError, CorruptCacheError
from reattention_core.store import disk

VERSION = 2
"""Of the format; the first was never released. A third will come with a function that makes a corpus of this one into its own."""

FILE = "manifest.json"
PACK_FILE = "pack.json"
PAGES, TABLES, TEXTS = "pages.safetensors", "tables.safetensors", "texts.json"

AnyManifest = TypeVar("AnyManifest", "Manifest", "PackManifest")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Segment(_Strict):
    """One document in a pack.

    Attributes:
        key: names what was read, with which model and how; see `segment_keys`.
        n_tokens: tokens it has.
    """

    key: str
    n_tokens: int = Field(ge=1, le=1 << 40)


class PackManifest(_Strict):
    """The contents of `pack.json`: documents that were read together.

    Attributes:
        format: marks the file as ours.
        version: of the format.
        identity: of the model and its settings; see `identity_of`.
        layers: of the model.
        summary_size: see `Pages`.
        segments: the documents, in the order of their pages; page 0 is the sink's.
        bytes: length of every file.
        crc32: of every file; of the pages', of its header alone.
    """

    format: Literal["reattention-pack"] = "reattention-pack"
    version: int = VERSION
    identity: str
    layers: int = Field(ge=1, le=100_000)
    summary_size: int = Field(ge=0, multiple_of=32)
    segments: list[Segment]
    bytes: dict[str, int]
    crc32: dict[str, int]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """Nothing is allocated by a number in this file before it is held against the length of another."""
        if not set(self.bytes) == set(self.crc32) == {PAGES, TABLES, TEXTS}:
            raise ValueError("not the files of a pack")
        if 8 * sum(segment.n_tokens for segment in self.segments) > self.bytes[TABLES]:
            raise ValueError("more tokens than their file can hold")
        return self


class PackUse(_Strict):
    """A pack that a corpus needs: all its bytes, and the CRC-32 of its `pack.json`."""

    bytes: int = Field(ge=0)
    crc32: int


class Entry(_Strict):
    """A document of a corpus: what is its own here, and where the rest lies.

    Attributes:
        id: of the document.
        source: see `Document`.
        metadata: see `Document`.
        pack: that it lies in.
        number: which of the pack's segments it is.
        key: of the segment.
        n_tokens: tokens it has.
    """

    id: str
    source: str | None
    metadata: dict[str, JsonValue]
    pack: str
    number: int = Field(ge=0)
    key: str
    n_tokens: int = Field(ge=1, le=1 << 40)


class Manifest(_Strict):
    """The contents of a corpus's `manifest.json`.

    Attributes:
        format: marks the file as ours.
        version: of the format.
        generation: counts what was published under the name.
        model: as it was asked for when the corpus was read.
        mode: how the documents were read.
        fingerprint: what the pages depend on, field by field.
        rule: that summed up chunks of documents, or "".
        summary_size: see `Pages`.
        sink: the pack whose page 0 stands before all documents.
        packs: that are needed, by id.
        documents: in reading order.
        crc32: of all the rest.
    """

    format: Literal["reattention-corpus"] = "reattention-corpus"
    version: int = VERSION
    generation: int = Field(ge=1)
    model: str = ""
    mode: Literal["independent", "joint"]
    fingerprint: dict[str, str]
    rule: str = ""
    summary_size: int = Field(ge=0, multiple_of=32)
    sink: str
    packs: dict[str, PackUse]
    documents: list[Entry]
    crc32: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if any(len(name) != 32 or not set(name) <= set("0123456789abcdef") for name in self.packs):
            raise ValueError("a pack has a name that we never give")
        if not {self.sink, *(entry.pack for entry in self.documents)} <= set(self.packs):
            raise ValueError("a document lies in a pack that is not listed")
        return self

    @property
    def size(self) -> int:
        """Bytes of all packs that it needs, shared ones and parts that it does not use included."""
        return sum(pack.bytes for pack in self.packs.values())

    def to_json(self) -> bytes:
        """As it is written, with its checksum."""
        body = self.model_dump(mode="json", exclude={"crc32"})
        return disk.to_json({**body, "crc32": zlib.crc32(disk.to_json(body))})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus in its folder.

    Raises:
        CorpusNotFoundError: there is none.
        CorruptCacheError: it is no manifest of ours, or damaged.
        CacheVersionError: another version's.
    """
    what = f"corpus {folder.name!r}"
    try:
        data = (folder / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CorpusNotFoundError(f"there is no {what}") from None
    except IsADirectoryError:
        raise CorruptCacheError(f"{what}: a folder has its manifest's name; delete that, and ingest it again") from None
    found = parsed(what, data, Manifest)
    if found.crc32 != _own_sum(data):
        raise CorruptCacheError(
            f"{what}: its manifest is damaged (its checksum differs); ingest it again with replace=True (--replace)"
        )
    return found


def parsed(what: str, data: bytes, kind: type[AnyManifest]) -> AnyManifest:
    """A manifest from its bytes.

    Args:
        what: names it in errors.
        data: JSON, as somebody may have written it.
        kind: of manifest.

    Raises:
        CorruptCacheError: it is no manifest of ours.
        CacheVersionError: another version's.
    """
    try:
        found: Any = json.loads(data)
        if found["format"] == kind.model_fields["format"].default and type(found["version"]) is int:
            _check_version(what, found["version"])
        return kind.model_validate(found)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCacheError(
            f"{what}: its manifest cannot be read ({type(error).__name__}); ingest it again with replace=True (--replace)"
        ) from error


def _check_version(what: str, version: int) -> None:
    if version != VERSION:
        raise CacheVersionError(
            f"{what} has format version {version}, this library reads version {VERSION}: use the version of reattention that "
            "wrote it, or ingest it again with replace=True (--replace)"
        )


def _own_sum(data: bytes) -> int:
    body = json.loads(data)
    body.pop("crc32", None)
    return zlib.crc32(disk.to_json(body))
