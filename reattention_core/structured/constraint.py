"""Allows a model only the tokens that a grammar allows: the only file that knows llguidance."""

import json
import re
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from reattention_core.errors import InvalidConfigError, UnsupportedModelError
from reattention_core.models.attach import embedding_rows

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammars:
    """Grammars over the tokens of one model.

    Args:
        tokenizer: a fast one.
        model: whose rows there are scores for, and whose end tokens end an answer (the tokenizer's, where it has none).

    Raises:
        ImportError: llguidance is not installed.
        UnsupportedModelError: no token ends an answer, or the tokenizer has no bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise ImportError(
                "tools and structured output need llguidance: pip install 'reattention[structured]'"
            ) from error
        end = model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        self._ends = end if isinstance(end, list) else [end]
        if end is None:
            raise UnsupportedModelError("neither the model nor its tokenizer has an end token: set tokenizer.eos_token")
        rows = max(embedding_rows(model), len(tokenizer))
        fast: Any = tokenizer
        try:
            self._tokens = from_tokenizer(fast, n_vocab=rows, eos_token=self._ends)
        except ValueError as error:
            raise UnsupportedModelError(
                f"tools and structured output need a tokenizer that can write every byte; this one cannot ({error})"
            ) from error
        # What the library takes for a control token must be named as one, whatever the tokenizer calls it.
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        self._control = {text: i for text, i in added.items() if self._tokens.is_special_token(i)}

    def literal(self, text: str) -> str:
        """A text as the terms of a grammar."""
        pattern = "|".join(re.escape(token) for token in sorted(self._control, key=len, reverse=True))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return " ".join(f"<[{self._control[p]}]>" if p in self._control else json.dumps(p) for p in parts if p)

    def constraint(self, grammar: str) -> "Constraint":
        """A grammar at its beginning.

        Raises:
            InvalidConfigError: a schema in it is wrong, or asks for what cannot be enforced.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, "%llguidance {}\n" + grammar, log_level=0)
        if matcher.is_error():
            raise InvalidConfigError(f"this schema cannot be followed: {_first_line(matcher.get_error())}")
        return Constraint(matcher, self._ends)


class Constraint(StoppingCriteria):
    """What one answer may still become. It takes every token that is drawn, and stops where nothing may follow.

    Attributes:
        ends: the tokens that end an answer; every other one is a part of it.
        mask: leaves only the allowed tokens their scores.
    """

    def __init__(self, matcher: "LLMatcher", ends: list[int]) -> None:
        self._matcher, self.ends = matcher, frozenset(ends)
        self.mask = _Mask(matcher)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Take the newest token; whether `generate` must stop, for each row."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(int(input_ids[0, -1]))
        _check(self._matcher)
        return torch.full((1,), self._matcher.is_stopped(), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    @property
    def final(self) -> bool:
        """Whether it must end here."""
        if self._matcher.is_stopped():
            return self.complete
        allowed = _allowed(self._matcher).clone()
        allowed[list(self.ends)] = False
        return self.complete and not bool(allowed.any())


class _Mask(LogitsProcessor):
    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores, minus infinity where a token is not allowed."""
        allowed = _allowed(self._matcher)[: scores.shape[-1]].to(scores.device)
        _check(self._matcher)
        return scores.masked_fill(~allowed, -torch.inf)  # type: ignore[return-value]


def _allowed(matcher: "LLMatcher") -> torch.Tensor:
    return torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8).bool()


def _check(matcher: "LLMatcher") -> None:
    if matcher.is_error():
        raise InvalidConfigError(f"this schema is too much for the grammar: {_first_line(matcher.get_error())}")


def _first_line(error: str) -> str:
    return error.strip().partition("\n")[0]
