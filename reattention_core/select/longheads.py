"""LongHeads as published: every head picks its own chunks for every query; knows no documents.

Source: arXiv 2402.10685, written from the paper's rule. The sequence is cut into chunks of `chunk_size` tokens. A chunk's
representation: rotate its queries and keys by their place in the chunk, let the chunk attend to itself without a causal
mask, take the mean of the outputs as its query, and let that query attend to the chunk's rotated keys, keys standing for
values too. A token scores chunks by its un-rotated query times the representation, per head. It sees, at consecutive
positions: the first chunk, the best ones, the one before its own, and its own up to itself. Until `begin_selective`
tokens have been read, attention is ordinary.

Chunks are counted from the start of each document, so none spans two; a single document is the published case.
"""

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator

from reattention_core.cache.growing import Growing
from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import InvalidConfigError, InvalidRequestError
from reattention_core.select.base import Context, Reader, Rotate, Selection, Selector
from reattention_core.select.fixed import Everything


class LongHeads(Selector):
    """The published rule; defaults are the paper's for a model trained on 4,096 tokens.

    Attributes:
        chunk_size: tokens of a chunk (the paper's window_size).
        attention_length: tokens each head of each query sees at most, a multiple of chunk_size.
        begin_selective_length: tokens up to which attention is ordinary.
        encoding_batch_size: tokens of a prompt read at a time.
    """

    name = "longheads"

    chunk_size: int = Field(default=256, ge=PAGE, multiple_of=PAGE)
    attention_length: int = Field(default=4096, ge=1)
    begin_selective_length: int = Field(default=4096, ge=1)
    encoding_batch_size: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_length % self.chunk_size or self.attention_length < 4 * self.chunk_size:
            raise ValueError(
                f"attention_length must be a multiple of chunk_size ({self.chunk_size}) and at least four times as long, "
                f"got {self.attention_length}"
            )
        return self

    @classmethod
    def for_window(cls, window: int) -> Self:
        """The published parameters, shrunk in proportion where the model's window is smaller than they need."""
        if window >= cls().attention_length:
            return cls()
        chunk = max(PAGE, window // 16 // PAGE * PAGE)
        length = window // chunk * chunk
        if length < 4 * chunk:
            raise InvalidConfigError(
                f"longheads needs a window of at least {4 * PAGE} tokens, the model's has {window}"
            )
        return cls(chunk_size=chunk, attention_length=length, begin_selective_length=length)

    @property
    def summary_size(self) -> int:
        """Tokens in a chunk."""
        return self.chunk_size

    def summarise(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotate: Rotate,
        scaling: float,
    ) -> torch.Tensor:
        """Representations of a document's chunks; see `Selector.summarise`.

        Raises:
            InvalidRequestError: the model's values are not as wide as its keys, so a mean of values cannot be compared.
        """
        if value.shape[2] != key.shape[2]:
            raise InvalidRequestError(
                f"longheads needs values as wide as keys, this model has {value.shape[2]} and {key.shape[2]}: use another strategy"
            )
        chunks = range(0, query.shape[1], self.chunk_size)
        parts = [slice(start, start + self.chunk_size) for start in chunks]
        return torch.stack([represent(query[:, p], key[:, p], value[:, p], rotate, scaling) for p in parts], 1)

    def reader(self, context: Context) -> Reader:
        """A reader for one request.

        Raises:
            InvalidConfigError: the rule would look at more tokens than the model was trained on.
            InvalidRequestError: the corpus was ingested without this rule's chunk representations.
        """
        widest = max(self.attention_length, self.begin_selective_length)
        if widest > context.window:
            raise InvalidConfigError(
                f"longheads would look at {widest} tokens, the model was trained on {context.window}: lower attention_length "
                f"and begin_selective_length, or use LongHeads.for_window({context.window})"
            )
        pages = context.pages
        if pages is not None and not pages.summaries:
            raise InvalidRequestError(
                "this corpus holds no chunk representations: longheads needs queries that exist only during ingest, so ingest "
                "it again with strategy='longheads'"
            )
        return _Reader(self, pages, context.scaling, context.rotations)


def represent(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotate: Rotate, scaling: float
) -> torch.Tensor:
    """The representation of one chunk, per query head.

    Args:
        query: [H, n, D], un-rotated.
        key: [G, n, D], un-rotated.
        value: [G, n, D].
        rotate: the layer's rotation.
        scaling: the layer's factor on q·k.

    Returns:
        [H, D] float32.
    """
    repeats = query.shape[0] // key.shape[0]
    keys = rotate(key[None], 0)[0].float().repeat_interleave(repeats, 0)
    queries = rotate(query[None], 0)[0].float()
    weights = (queries @ keys.transpose(1, 2) * scaling).softmax(-1)
    centre = (weights @ value.float().repeat_interleave(repeats, 0)).mean(1, keepdim=True)
    return ((centre @ keys.transpose(1, 2) * scaling).softmax(-1) @ keys).squeeze(1)


class _Reader(Reader):
    def __init__(
        self, rule: LongHeads, pages: Pages | None, scaling: Sequence[float], rotations: Sequence[Rotate]
    ) -> None:
        self._rule, self._scaling, self._rotations = rule, scaling, rotations
        self._everything, self.chunk = Everything(), rule.encoding_batch_size
        self._queries: dict[int, Growing] = {}
        self._tail_summaries: dict[int, list[torch.Tensor]] = {}
        if pages is not None:
            self.evidence = torch.zeros(pages.n_pages, device=pages.filled.device)
            self._page_chunks = pages.chunks(rule.chunk_size)

    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        representations = self._representations(layer, query[0])
        corpus = 0 if layer.pages is None else len(layer.pages.addresses)
        if corpus + layer.n_tail <= self._rule.begin_selective_length:
            return self._everything.select(layer, query)
        return Selection(self._choose(layer, query[0], representations, corpus))

    def _representations(self, layer: ContextLayer, query: torch.Tensor) -> torch.Tensor:
        """Of all full chunks so far, corpus and tail, [H, C, D]; remembers the queries of the unfinished one."""
        size, index = self._rule.chunk_size, layer.index
        known = self._tail_summaries.setdefault(index, [])
        queries = self._queries.setdefault(index, Growing())
        before = layer.n_tail - query.shape[1]
        if queries.n > before:  # the cache was cropped
            queries.crop(queries.n - before)
            del known[before // size :]
        queries.append(query[None])
        keys, values = layer.tail_keys.tokens[0], layer.tail_values.tokens[0]
        while (len(known) + 1) * size <= layer.n_tail:
            part = slice(len(known) * size, (len(known) + 1) * size)
            chunk = queries.tokens[0][:, part], keys[:, part], values[:, part]
            known.append(represent(*chunk, self._rotations[index], self._scaling[index]))
        corpus = [] if layer.pages is None else [layer.pages.summaries[index].float()]
        tail = [torch.stack(known, 1)] if known else []
        if not corpus + tail:
            return query.new_empty(query.shape[0], 0, query.shape[2])
        return torch.cat(corpus + tail, 1)

    def _choose(
        self, layer: ContextLayer, query: torch.Tensor, representations: torch.Tensor, corpus: int
    ) -> torch.Tensor:
        """Addresses of every head's and query's own window, [H, Q, n], padded at the front with -1."""
        size, device = self._rule.chunk_size, query.device
        starts, lengths, corpus_chunks = self._chunks(layer, corpus)
        rank = corpus + layer.n_tail - query.shape[1] + torch.arange(query.shape[1], device=device)
        own = torch.searchsorted(starts, rank, right=True) - 1
        scores = query.float() @ representations.transpose(1, 2)  # [H, Q, C]
        number = torch.arange(representations.shape[1], device=device)
        scores = scores.masked_fill((number == 0) | (number >= own[:, None] - 1), float("-inf"))
        others = min(self._rule.attention_length // size - 3, scores.shape[-1])
        best = scores.sort(dim=-1, descending=True, stable=True)
        chosen = best.indices[..., :others].masked_fill(best.values[..., :others].isneginf(), -1)
        always = torch.stack([torch.zeros_like(own), own - 1, own], -1).expand(len(query), -1, -1)
        # Early on the first chunk is also the one before, or the own one: seen once.
        always = always.clone()
        always[..., 1].masked_fill_(own <= 1, -1)
        always[..., 2].masked_fill_(own == 0, -1)
        chosen = torch.cat([always, chosen], -1).sort(-1).values
        self._remember(chosen, corpus_chunks)
        slot = torch.arange(size, device=device)
        tokens = starts[chosen][..., None] + slot
        real = (chosen >= 0)[..., None] & (slot < lengths[chosen][..., None])
        real &= tokens <= rank[:, None, None]
        return self._pack(layer, tokens.flatten(2), real.flatten(2))

    def _chunks(self, layer: ContextLayer, corpus: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Rank of every chunk's first token [C], its length [C], and how many chunks the corpus has."""
        size, device = self._rule.chunk_size, layer.tail_keys.tokens.device
        tail = torch.arange(0, layer.n_tail, size, device=device)
        lengths = (layer.n_tail - tail).clamp(max=size)
        if layer.pages is None:
            return tail, lengths, 0
        of_token = self._page_chunks[layer.pages.addresses // PAGE]
        below = torch.bincount(of_token)
        starts = torch.cat([below.cumsum(0) - below, tail + corpus])
        return starts, torch.cat([below, lengths]), len(below)

    @staticmethod
    def _pack(layer: ContextLayer, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Addresses of the real ones among ranks [H, Q, n], right-aligned, as narrow as the fullest row."""
        sequence = layer.n_slots + torch.arange(layer.n_tail, device=tokens.device)
        if layer.pages is not None:
            sequence = torch.cat([layer.pages.addresses, sequence])
        addresses = sequence[tokens.clamp(0, len(sequence) - 1)].masked_fill(~real, -1)
        order = real.to(torch.uint8).sort(dim=-1, stable=True).indices
        return addresses.gather(-1, order)[..., -int(real.sum(-1).max()) :]

    def _remember(self, chosen: torch.Tensor, corpus_chunks: int) -> None:
        """Count how often each page's chunk was chosen, beyond those that always are, as evidence."""
        if self.evidence is None or corpus_chunks < 3:
            return
        votes = torch.bincount(chosen[chosen >= 0], minlength=corpus_chunks)[:corpus_chunks].float()
        votes[0], votes[-1] = 0.0, 0.0
        self.evidence += votes[self._page_chunks]
