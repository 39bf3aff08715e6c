"""Turns text into tokens with character spans; knows no chat template, model or cache.

Text from outside must never become a control token: a document that says `<|im_end|>` would end
the turn it is quoted in. So text is encoded by a copy of the tokenizer in which every control
token has a random name that no text can contain. Ids stay as they are; only the names differ.
"""

import json
import secrets
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer

from reattention_core.documents import Document, check_encodable
from reattention_core.errors import EmptyPromptError, InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
NO_SPAN: Span = (-1, -1)  # of a token that covers no character of the text
TOGETHER = 64  # documents encoded side by side; an encoding takes many times the memory of its ids


class PlainTokens(NamedTuple):
    """Token ids, and for each the characters of the text it covers (start, end)."""

    ids: list[int]
    spans: list[Span]


class TokenizedDocument(NamedTuple):
    """A document as the model reads it; spans [n, 2] int32 count characters of `document.text`."""

    document: Document
    ids: list[int]
    spans: torch.Tensor


class PlainTokenizer:
    """Encodes text so that none of it becomes a control token.

    Control tokens are all special and all added tokens, except added runs of white space: some
    vocabularies have those (GPT-NeoX), or can write a newline in no better way (Gemma).

    Attributes:
        vocab_rows: How many rows the model's embedding has.
        control_ids: The ids that `encode` never returns.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_rows: int) -> None:
        """Copies the tokenizer; later changes to it are not seen.

        Args:
            tokenizer: A fast Hugging Face tokenizer.
            vocab_rows: The rows of the model's input embedding; no id may reach it.

        Raises:
            UnsupportedModelError: The tokenizer is not a fast one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which gives no character spans;"
                " a fast one (a tokenizer.json, or AutoTokenizer with use_fast=True) is needed"
            )
        control = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content.replace("▁", " ").strip()
        }
        control.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        state = json.loads(backend.to_str())
        # What the vocabulary cannot write becomes the unknown token, which controls nothing,
        # unless a tokenizer without one has put its end token there.
        unknown = {_unknown_id(state["model"])} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self.vocab_rows = vocab_rows
        self.control_ids = frozenset(control) - unknown
        self._backend = _with_random_names(state, set(control.values()))

    def encode(self, text: str) -> PlainTokens:
        """Encodes all of `text`, and nothing else: no special token is put around it.

        Raises:
            InvalidRequestError: The text is not a string, holds a lone surrogate, or gives an id
                that is a control token or beyond the model's embedding.
        """
        return self._checked(text, self._backend.encode(check_encodable(text), add_special_tokens=False))

    def encode_documents(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        r"""Encodes each document: its title on a line of its own, the text, and a closing blank line.

        The three are encoded as one string, as the model would meet them; a token that covers
        nothing of the text has NO_SPAN. Several documents are encoded side by side.

        Raises:
            EmptyPromptError: A text gives no token.
            InvalidRequestError: As for `encode`.
        """
        headers = [f"{document.title}\n" if document.title else "" for document in documents]
        texts = [
            check_encodable(f"{header}{document.text}\n\n") for header, document in zip(headers, documents, strict=True)
        ]
        tokenized = []
        for first in range(0, len(texts), TOGETHER):
            some = slice(first, first + TOGETHER)
            encodings = self._backend.encode_batch(texts[some], add_special_tokens=False)
            for number, encoding in enumerate(encodings, first):
                document, header = documents[number], headers[number]
                ids, pairs = self._checked(texts[number], encoding)
                spans = _within(pairs, len(header), len(document.text))
                if not document.text.strip() or bool((spans < 0).all()):
                    raise EmptyPromptError(
                        f"the text of document {document.id!r} gives no token: it is {document.text[:40]!r}"
                    )
                tokenized.append(TokenizedDocument(document, ids, spans))
        return tokenized

    def _checked(self, text: str, encoding: Encoding) -> PlainTokens:
        ids, spans = encoding.ids, encoding.offsets
        self.check_rows(ids)
        if not self.control_ids.isdisjoint(ids):
            index, span = next(pair for pair in zip(ids, spans, strict=True) if pair[0] in self.control_ids)
            raise InvalidRequestError(
                f"{text[slice(*span)]!r} at character {span[0]} can only be written with the control token {index} in this"
                " model's vocabulary; remove it from the text"
            )
        return PlainTokens(ids, spans)

    def check_rows(self, ids: list[int]) -> None:
        """Checks that the model has an embedding for every id, before it fails on a device.

        Raises:
            InvalidRequestError: An id is not below `vocab_rows`.
        """
        if (highest := max(ids, default=0)) >= self.vocab_rows:
            raise InvalidRequestError(
                f"token {highest} is beyond the model's {self.vocab_rows} embedding rows: this"
                " tokenizer belongs to another model, or the embeddings were not resized"
            )


def _within(spans: list[Span], header: int, length: int) -> torch.Tensor:
    """Spans [n, 2] of the text alone, which begins after `header` characters and has `length`; NO_SPAN outside it.

    A tensor at once: a million pairs cost a second in Python, and its garbage collector walks through them ever after.
    """
    # By way of numpy, in half the time that torch takes to walk through a list.
    flat = np.fromiter(chain.from_iterable(spans), np.int32, 2 * len(spans))
    found = (torch.from_numpy(flat).view(-1, 2) - header).clamp(0, length)
    outside = found[:, :1] >= found[:, 1:]
    return found.masked_fill(outside, NO_SPAN[0])


def _unknown_id(model: dict[str, Any]) -> int | None:
    index = model["unk_id"] if "unk_id" in model else model["vocab"].get(model.get("unk_token"))
    return index if isinstance(index, int) else None


def _with_random_names(state: dict[str, Any], control: set[str]) -> Tokenizer:
    # Renamed, not removed: without its entry a token's id would go to the next added token.
    names = {content: f"\0{secrets.token_hex(16)}" for content in control}
    # The post-processor adds special tokens and cuts white space off the spans.
    state.update(truncation=None, padding=None, post_processor=None)
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:  # Unigram: a list of pieces and scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        # A merge that makes or extends a control token has nothing to refer to any more.
        model["merges"] = [
            [left, right] for left, right in model["merges"] if names.keys().isdisjoint((left, right, left + right))
        ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    copy: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return copy
