"""One pack on disk: documents that were read together, written once and never changed; knows no corpus and no names.

pages.safetensors   keys.000, values.000, keys.001, … [G, P, 32, D]; page 0 is the sink's; mapped, not read, when opened
tables.safetensors  spans [N, 2], sums.000 … [2, G, C] of keys and of values, summaries.000 … [H, C, D]
texts.json          title and text of each document
pack.json           fingerprint, keys and lengths of the documents, lengths and checksums of the files: written last
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import PAGE, Pages, pages_for
from reattention_core.cache.stitched import Run
from reattention_core.errors import CorruptCacheError, PartialCacheError
from reattention_core.sources import ReadDocument
from reattention_core.store import disk
from reattention_core.store.manifest import PACK_FILE, PAGES, TABLES, TEXTS, PackManifest, PackUse, Segment, parsed
from reattention_core.store.mapped import MappedPages, block_sums, blocks_for

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNED = 4096
"""Where the tensors of a file begin: a page of memory, so that they can be mapped as they lie."""


@dataclass(frozen=True)
class Pack:
    """An opened pack.

    Attributes:
        pages: keys and values, mapped.
        texts: title and text of each document.
        spans: [n, 2] int32 of each document.
        starts: address of each document's first token in `pages`.
        manifest: as read.
    """

    pages: MappedPages
    texts: list[tuple[str, str]]
    spans: list[torch.Tensor]
    starts: tuple[int, ...]
    manifest: PackManifest


def write_pack(
    folder: Path, pages: Pages, documents: Sequence[ReadDocument], keys: Sequence[str], identity: str
) -> PackUse:
    """Write a pack into a new folder.

    Args:
        folder: new and empty.
        pages: that the documents lie in; page 0 is the sink's.
        documents: which of them to write.
        keys: of their segments.
        identity: of the model and its settings.

    Raises:
        OSError: the disk cannot take it.
    """
    runs = [Run(pages, 0, 1)]
    for document in documents:
        first, stop = document.start // PAGE, document.start // PAGE + pages_for(document.n_tokens)
        if runs[-1].stop == first:
            runs[-1] = runs[-1]._replace(stop=stop)
        else:
            runs.append(Run(pages, first, stop))
    header, sums = _header(pages, sum(run.n_pages for run in runs)), dict[str, torch.Tensor]()
    disk.write(folder / PAGES, (header, *_payload(runs, sums)))
    spans = torch.cat([torch.empty(0, 2, dtype=torch.int32), *(document.spans for document in documents)])
    tables = {"spans": spans, **sums, **_summaries(runs)}
    written = {TABLES: save(tables), TEXTS: disk.to_json([[d.document.title, d.document.text] for d in documents])}
    for file, data in written.items():
        disk.write(folder / file, (data,))
    manifest = PackManifest(
        identity=identity,
        layers=pages.n_layers,
        summary_size=pages.summary_size,
        segments=[Segment(key=key, n_tokens=d.n_tokens) for key, d in zip(keys, documents, strict=True)],
        bytes={file: (folder / file).stat().st_size for file in (PAGES, TABLES, TEXTS)},
        crc32={PAGES: zlib.crc32(header), **{file: zlib.crc32(data) for file, data in written.items()}},
    )
    data = disk.to_json(manifest.model_dump(mode="json"))
    disk.write(folder / PACK_FILE, (data,))
    disk.sync(folder)
    return _use(manifest, data)


def _use(manifest: PackManifest, data: bytes) -> PackUse:
    return PackUse(bytes=sum(manifest.bytes.values()) + len(data), crc32=zlib.crc32(data))


def _header(pages: Pages, n_pages: int) -> bytes:
    """The beginning of the file of pages: names, types, shapes and places of its tensors."""
    entries, at = {}, 0
    for layer in range(pages.n_layers):
        for name, tensor in zip(("keys", "values"), pages.read(layer, 0, 1), strict=True):
            shape = [tensor.shape[0], n_pages, *tensor.shape[2:]]
            stop = at + tensor.nbytes * n_pages
            entries[f"{name}.{layer:03}"] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": shape,
                "data_offsets": [at, stop],
            }
            at = stop
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _payload(runs: Sequence[Run], sums: dict[str, torch.Tensor]) -> Iterator[memoryview]:
    """The bytes of all tensors in order, one at a time; fills in each layer's checksums [2, G, C] on the way."""
    for layer in range(runs[0].pages.n_layers):
        read, found = [run.pages.read(layer, run.first, run.stop) for run in runs], []
        for which in range(2):
            parts = [pair[which].cpu() for pair in read]
            tensor = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).contiguous()
            found.append(block_sums(tensor))
            yield memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
        sums[f"sums.{layer:03}"] = torch.stack(found)


def _summaries(runs: Sequence[Run]) -> dict[str, torch.Tensor]:
    size, summaries = runs[0].pages.summary_size, runs[0].pages.summaries
    if not size:
        return {}
    chunks = runs[0].pages.chunks(size).cpu()
    wanted = torch.cat([torch.arange(int(chunks[r.first]), int(chunks[r.stop - 1]) + 1) for r in runs])
    return {f"summaries.{layer:03}": summary.cpu()[:, wanted] for layer, summary in enumerate(summaries)}


def open_pack(folder: Path, use: PackUse, identity: str) -> Pack:
    """Map a pack's pages, and read the rest of it.

    Args:
        folder: of the pack.
        use: what the corpus knows of it.
        identity: that the corpus has.

    Raises:
        PartialCacheError: a file is missing or has another length.
        CorruptCacheError: a file is damaged, or is not what its manifest says.
        CacheVersionError: a newer version wrote it.
    """
    manifest = read_pack(folder)
    if zlib.crc32((folder / PACK_FILE).read_bytes()) != use.crc32 or manifest.identity != identity:
        raise CorruptCacheError(f"{folder / PACK_FILE} is not the one that the corpus was published with")
    data = {file: _checked(folder / file, manifest) for file in (PAGES, TABLES, TEXTS)}
    lengths = [segment.n_tokens for segment in manifest.segments]
    layout = lay_out(lengths)
    with safe_open(folder / TABLES, framework="pt", device="cpu") as file:
        spans = file.get_tensor("spans")
        sums = [file.get_tensor(f"sums.{layer:03}").clone() for layer in range(manifest.layers)]
        names = [f"summaries.{layer:03}" for layer in range(manifest.layers)] if manifest.summary_size else []
        summaries = [file.get_tensor(name).clone() for name in names]
    n_pages = len(layout.first)
    if (spans.shape, spans.dtype) != ((sum(lengths), 2), torch.int32):
        raise ValueError("the tables do not fit the documents")
    with safe_open(folder / PAGES, framework="pt", device="cpu") as file:
        keys = [file.get_tensor(f"keys.{layer:03}") for layer in range(manifest.layers)]
        values = [file.get_tensor(f"values.{layer:03}") for layer in range(manifest.layers)]
    if any(t.dim() != 4 or t.shape[1:3] != (n_pages, PAGE) or t.dtype not in DTYPES for t in (*keys, *values)):
        raise ValueError("a layer's pages do not fit the documents")
    shapes = [(2, key.shape[0], blocks_for(n_pages)) for key in keys]
    if [(s.shape, s.dtype) for s in sums] != [(shape, torch.int64) for shape in shapes]:
        raise ValueError("the checksums do not fit the pages")
    if [key.shape[0] for key in keys] != [value.shape[0] for value in values]:
        raise ValueError("a layer has keys and values of different heads")
    pages = MappedPages(
        keys, values, layout.filled, layout.first, summaries, manifest.summary_size, sums, str(folder / PAGES)
    )
    texts = [(str(title), str(text)) for title, text in json.loads(data[TEXTS])]
    if len(texts) != len(lengths):
        raise ValueError("as many texts as documents were expected")
    return Pack(pages, texts, [part.clone() for part in spans.split(lengths)], layout.starts, manifest)


def read_pack(folder: Path) -> PackManifest:
    """The manifest of a pack.

    Raises:
        PartialCacheError: there is none.
        CorruptCacheError: it is no manifest of ours.
        CacheVersionError: another version's.
    """
    try:
        data = (folder / PACK_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise PartialCacheError(f"{folder / PACK_FILE} is missing") from None
    return parsed(str(folder / PACK_FILE), data, PackManifest)


def _checked(path: Path, manifest: PackManifest) -> bytes:
    """A file's bytes, or its header's where it holds the pages, once they are what the manifest says."""
    size = manifest.bytes[path.name]
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
        raise PartialCacheError(f"{path} has {found:,} bytes instead of {size:,}")
    with path.open("rb") as file:
        data = file.read(8 if path.name == PAGES else -1)
        if path.name == PAGES:
            data += file.read(min(int.from_bytes(data, "little"), found))
    if zlib.crc32(data) != manifest.crc32[path.name]:
        raise CorruptCacheError(f"{path} is damaged (its checksum differs)")
    return data
