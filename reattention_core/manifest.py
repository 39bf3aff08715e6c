"""What a saved corpus says of itself, checked before anything else of it is believed; knows no tensors.

Checksums find damage, not tampering: who can write the files can write the sums. Layer files are summed over their headers
only, so that opening stays lazy; their lengths are checked in full.
"""

import json
import zlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from reattention_core.errors import CacheVersionError, CorruptCacheError, PartialCacheError

VERSION = 1
FILE = "manifest.json"


class Place(BaseModel):
    """Where one document lies.

    Attributes:
        start: address of its first token.
        n_tokens: tokens it has.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    start: int = Field(ge=0)
    n_tokens: int = Field(ge=1, le=1 << 40)


class Manifest(BaseModel):
    """The contents of `manifest.json`.

    Attributes:
        format: marks the file as ours.
        version: of the format.
        model: as it was asked for when the corpus was read.
        mode: how the documents were read.
        fingerprint: what the pages depend on, field by field.
        layers: how many layer files there are.
        summary_size: see `Pages`.
        documents: where each one lies.
        bytes: length of every file.
        crc32: of every file, of a layer file's header only.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["reattention-corpus"] = "reattention-corpus"
    version: int = VERSION
    model: str = ""
    mode: Literal["independent", "joint"]
    fingerprint: dict[str, str]
    layers: int = Field(ge=1, le=100_000)
    summary_size: int = Field(ge=0, multiple_of=32)
    documents: list[Place]
    bytes: dict[str, int]
    crc32: dict[str, int]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """Nothing is allocated by a number in this file before it is held against the length of another."""
        if 8 * sum(place.n_tokens for place in self.documents) > self.bytes.get("tokens.safetensors", 0):
            raise ValueError("more tokens than their file can hold")
        return self

    def check_files(self, folder: Path) -> None:
        """Compare the files with what the manifest says of them.

        Raises:
            PartialCacheError: a file is missing or has another length.
            CorruptCacheError: a checksum differs, or a file is not listed.
        """
        wanted = {layer_file(index) for index in range(self.layers)} | {"documents.json", "tokens.safetensors"}
        if wanted != set(self.bytes) or wanted != set(self.crc32):
            raise CorruptCacheError(f"corpus {folder.name!r}: its manifest does not list the files it must have")
        for file, size in self.bytes.items():
            path = folder / file
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise PartialCacheError(
                    f"corpus {folder.name!r}: {file} has {found:,} bytes instead of {size:,}; remove it and ingest it again"
                )
            if checksum(path) != self.crc32[file]:
                raise CorruptCacheError(
                    f"corpus {folder.name!r}: {file} is damaged (its checksum differs); remove it and ingest it again"
                )


def layer_file(index: int) -> str:
    """Name of a layer's file."""
    return f"layer_{index:03}.safetensors"


def checksum(path: Path) -> int:
    """CRC-32 of a file, or of the header alone where it is a layer's."""
    with path.open("rb") as file:
        if not path.name.startswith("layer_"):
            return zlib.crc32(file.read())
        length = file.read(8)
        return zlib.crc32(length + file.read(min(int.from_bytes(length, "little"), path.stat().st_size)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a corpus's folder.

    Raises:
        CorruptCacheError: it is no manifest of ours.
        CacheVersionError: a newer version wrote it.
    """
    try:
        found: Any = json.loads((folder / FILE).read_bytes())
        if found["format"] == "reattention-corpus" and type(found["version"]) is int and found["version"] > VERSION:
            raise CacheVersionError(
                f"corpus {folder.name!r} has format version {found['version']}, this library reads up to {VERSION}: "
                "update reattention"
            )
        return Manifest.model_validate(found)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCacheError(
            f"corpus {folder.name!r}: its manifest cannot be read ({type(error).__name__}); remove it and ingest it again"
        ) from error
