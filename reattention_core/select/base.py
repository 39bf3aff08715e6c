"""The interface of every selection rule; knows no rule.

A `Selector` holds a rule's parameters and is shared by all requests. For each request it makes a `Reader`, which sees
every layer's un-rotated queries and says which of the earlier tokens they may attend to. Write your own by subclassing
both (see the README); pass an instance wherever a strategy is named.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict

from reattention_core.cache.kv_cache import ContextLayer
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.errors import InvalidRequestError
from reattention_kernels import PageTable, page_table
from reattention_kernels.launch import next_power


class Probed(NamedTuple):
    """What some tokens of a text are in every layer, behind the sink alone.

    Attributes:
        queries: [H, Q, D] a layer, un-rotated.
        values: [G, Q, D] a layer.
    """

    queries: list[torch.Tensor]
    values: list[torch.Tensor]


Probe = Callable[[Sequence[int], slice], Probed]
"""Runs token ids behind the sink alone and returns what the named ones are."""

Listen = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Log-likelihood [R] float32 of the question's own words behind each of R rows of pages [n] int64, in reading order."""

Rotate = Callable[[torch.Tensor, int], torch.Tensor]
"""A layer's rotation: (x [B, heads, n, D], first position) -> the same shape."""


class Head(NamedTuple):
    """A query head and how far it is trusted.

    Attributes:
        layer: of the model.
        head: among the layer's query heads.
        trust: share of its attention, beyond that of an empty question, that went to the right text when it was examined.
    """

    layer: int
    head: int
    trust: float


class Trusted(NamedTuple):
    """What of a model finds what a question asks for, as an exam found it.

    Attributes:
        heads: the most trusted first.
        layer: the one whose values tell best which text has a question's words.
    """

    heads: Sequence[Head]
    layer: int

    @property
    def compared(self) -> set[int]:
        """The layers whose values are compared: this one, and the first, which tells how rare a word is."""
        return {0, self.layer}


@dataclass(frozen=True, eq=False)
class Selection:
    """What the queries of one layer and chunk may see.

    Attributes:
        addresses: [n] int64, in reading order: the same earlier tokens for all heads and queries of the chunk. Or [B, n]:
            each row's own, padded at the front with -1. Or [H, Q, n]: each head's and query's own tokens, itself last, rising,
            padded at the front with -1.
        tail_from: with addresses [n], the tail's tokens from this one on follow them, causally; with [B, n] the whole tail.
        table: the same tokens as whole pages, where they are: a GPU then reads them where they lie, without a copy. With
            addresses [B, n] it has pages of its own for each row, [B, 1, m].
    """

    addresses: torch.Tensor
    tail_from: int = 0
    table: PageTable | None = None

    @classmethod
    def of_pages(cls, pages: Pages, chosen: torch.Tensor) -> "Selection":
        """Whole pages and the tail.

        Args:
            pages: the corpus.
            chosen: page numbers [n] int64, in reading order.
        """
        # Padded to a power of two, so that tables of about the same length are read by the same launch.
        padding = next_power(len(chosen)) - len(chosen)
        padded = torch.nn.functional.pad(chosen, (0, padding), value=-1)
        return cls(pages.addresses_of(chosen), table=page_table(padded, pages.filled))


@dataclass
class Question:
    """A prompt that asks a corpus something.

    Attributes:
        ids: the prompt's token ids.
        asking: which of them are the question in its form (not history).
        wording: which of those are its own words (not its form's).
        empty: ids of the same prompt form with nothing asked.
        probe: runs a text behind the sink alone; see `Probe`.
        listen: how likely the question is behind some pages; see `Listen`.
        trusted: what of the model finds what a question asks for; examined when first asked for.
        memo: kept with the corpus between requests, for what need be worked out only once.
    """

    ids: Sequence[int]
    asking: slice
    wording: slice
    empty: Sequence[int]
    probe: Probe
    listen: Listen
    trusted: Callable[[], Trusted]
    memo: dict[str, Any]


@dataclass
class Context:
    """What a selector may know of a request before it reads.

    Attributes:
        window: tokens of the model's trained window: the most that may be seen at once.
        tail: tokens the tail will have at most, prompt and new tokens together.
        scaling: each layer's factor on q·k.
        rotations: each layer's rotation.
        pages: the corpus, or None for an ordinary prompt.
        question: what is asked, or None while documents are read.
    """

    window: int
    tail: int
    scaling: Sequence[float]
    rotations: Sequence[Rotate]
    pages: Pages | None = None
    question: Question | None = None

    def asked(self) -> tuple[Pages, Question]:
        """The corpus and what it is asked, for rules that are about nothing else.

        Raises:
            InvalidRequestError: there is no corpus, or no question because documents are being read.
        """
        if self.pages is None or self.question is None:
            raise InvalidRequestError(
                "this selection rule answers questions to a corpus and nothing else: for a prompt, or to read documents with "
                "`joint`, name another strategy"
            )
        return self.pages, self.question


class Reader(ABC):
    """One request's reading.

    Attributes:
        evidence: [P] float32, how much each page was asked for, once the prompt has been read; None without pages.
        chunk: tokens of a prompt that are read at a time.
        settled: whether every token after the prompt reads what the prompt read, and what was written since.
        way: a name for this way of reading a prompt without a corpus, the same for all prompts whose beginnings it makes the
            same keys and values of; empty where those must not stand in for reading again.
        step: they may, up to a multiple of this many tokens, itself one of the page.
        pages: those that its selections name, where they are not the corpus's own (`Pages.staged`).
    """

    pages: Pages | None = None
    evidence: torch.Tensor | None = None
    chunk: int = 1024
    settled: bool = False
    way: str = ""
    step: int = PAGE

    def cited(self, most: int = 5) -> torch.Tensor:
        """The pages that an answer rests on, [n] int64, rising: those with the most evidence."""
        if self.evidence is None:
            return torch.empty(0, dtype=torch.int64)
        best = self.evidence.topk(min(most, len(self.evidence)))
        return best.indices[best.values > 0].sort().values

    @abstractmethod
    def select(self, layer: ContextLayer, query: torch.Tensor) -> Selection:
        """What a chunk's queries may see in a layer that looks at everything.

        Args:
            layer: the layer's pages and tail; the chunk's own keys are already the tail's last Q tokens.
            query: [B, H, Q, D], un-rotated.
        """

    def select_local(self, layer: ContextLayer, query: torch.Tensor, width: int) -> Selection:
        """What a sliding-window layer may see: the last `width` tokens before each query, in reading order."""
        return latest(layer, width + query.shape[2] - 1)


class Selector(BaseModel, ABC):
    """A selection rule and its parameters; every field is checked when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]

    @classmethod
    def for_window(cls, window: int) -> Self:
        """The rule with parameters that suit a model trained on `window` tokens."""
        return cls()

    @abstractmethod
    def reader(self, context: Context) -> Reader:
        """The reader of one request.

        Raises:
            ContextTooLongError: the request does not fit the model's window under this rule.
        """

    @property
    def summary_size(self) -> int:
        """Tokens in a chunk that `summarise` sums up, a multiple of the page; 0 for rules that need none."""
        return 0

    def summarise(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotate: Rotate,
        scaling: float,
    ) -> torch.Tensor:
        """What the rule must remember of a document beyond keys and values, worked out in one layer during ingest.

        Args:
            query: [H, n, D], un-rotated queries of one document.
            key: [G, n, D], un-rotated.
            value: [G, n, D].
            rotate: the layer's rotation.
            scaling: the layer's factor on q·k.

        Returns:
            [H, C, D], a summary of each chunk of `summary_size` tokens.
        """
        raise TypeError(f"{type(self).__name__} has a summary_size and must define summarise")


def latest(layer: ContextLayer, n: int) -> Selection:
    """The last `n` tokens of the sequence, the corpus's end included where the tail is shorter."""
    device = layer.tail_keys.tokens.device
    missing = n - layer.n_tail
    if layer.pages is None or missing <= 0:
        return Selection(torch.empty(0, dtype=torch.int64, device=device), max(0, layer.n_tail - n))
    return Selection(layer.pages.addresses[-missing:])
