"""What the tests of the store save and compare: documents over pages that no model has made."""

import copy
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reattention_core import Config, Document, Engine
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.sources import ReadDocument
from reattention_core.store import Store, disk
from reattention_core.store.about import About
from reattention_core.store.manifest import Manifest
from reattention_core.store.opening import SavedCorpus
from tests.conftest import tiny_model
from tests.core.tiny_tokenizers import byte_level_bpe

CPU = torch.device("cpu")
MODEL = {"weights": "of this model"}
ABOUT = About("tiny", "independent", MODEL)


@dataclass(frozen=True)
class Made:
    """Pages, and the documents in them."""

    pages: Pages
    documents: list[ReadDocument]


def made(
    word: str, lengths: Sequence[int] = (40, 20), dtype: torch.dtype = torch.float32, summary_size: int = 0
) -> Made:
    """Two layers of pages that look random: a sink, and documents of some lengths whose texts begin with a word."""
    layout = lay_out(lengths)
    pages = Pages.allocate([(2, 16, 8)] * 2, layout.first, layout.filled, dtype, CPU)
    if summary_size:
        pages.reserve_summaries([(4, 16)] * 2, summary_size)
    seed = zlib.crc32(word.encode())
    for number, tensor in enumerate((*pages.keys, *pages.values, *pages.summaries)):
        # The same in every process and with every version of torch: numbers that all types hold exactly.
        mixed = (torch.arange(tensor.numel()) + (seed + number) % 9973) * 40503 % 65521 % 255 - 127
        tensor.copy_((mixed / 64).view(tensor.shape))
    documents = []
    for number, (length, start) in enumerate(zip(lengths, layout.starts, strict=True)):
        document = Document(text=f"{word}, the text of document {number}", id=str(number), source=f"{number}.txt")
        spans = torch.tensor([(i % 20, i % 20 + 1) for i in range(length)], dtype=torch.int32)
        documents.append(ReadDocument(document, spans, start))
    return Made(pages, documents)


def save(
    store: Store, name: str, what: Made, *, about: About = ABOUT, replace: bool = False, base: int | None = None
) -> Manifest:
    """Publish, as an ingest or an edit does."""
    with store.draft(name, about, base, replace) as draft:
        return draft.publish(what.pages, what.documents)[0]


def holds(saved: SavedCorpus, what: Made) -> bool:
    """Whether a corpus is just this one, every page of it read."""
    ours = [(d.document, d.spans.tolist(), d.start) for d in saved.documents]
    if ours != [(d.document, d.spans.tolist(), d.start) for d in what.documents]:
        return False
    return all(torch.equal(a, b) for a, b in zip(_tensors(saved.pages), _tensors(what.pages), strict=True))


def _tensors(pages: Pages) -> Iterator[torch.Tensor]:
    yield from (pages.filled, pages.first, torch.tensor(pages.summary_size), *pages.summaries)
    for layer in range(pages.n_layers):
        yield from pages.read(layer, 0, pages.n_pages)


def load(store: Store, name: str) -> SavedCorpus:
    """A corpus of `ABOUT`."""
    return store.load(name, MODEL, CPU)


def packs(root: Path) -> list[Path]:
    """Folders of packs, those that are being written or deleted included."""
    return sorted((root / ".packs").iterdir())


def files_of(root: Path, name: str) -> list[Path]:
    """Every file that a corpus needs."""
    named = json.loads((root / name / "manifest.json").read_text())["packs"]
    return [
        root / name / "manifest.json",
        *(f for pack in sorted(named) for f in sorted((root / ".packs" / pack).iterdir())),
    ]


def forged(path: Path, content: Any) -> None:
    """Write a manifest with its checksum right, as somebody would who knows how."""
    body = copy.copy(content)
    body.pop("crc32", None)
    path.write_bytes(disk.to_json({**body, "crc32": zlib.crc32(disk.to_json(body))}))


@contextmanager
def tiny_engine(root: Path, **config: Any) -> Iterator[Engine]:
    """An engine on a tiny random model, the same one at every call."""
    torch.manual_seed(42)
    settings = {"cache_dtype": "float32", "max_new_tokens": 8, "stop": (), **config}
    with Engine(tiny_model(), byte_level_bpe(), Config(**settings), root) as engine:
        yield engine
