"""Errors that are LangChain's as well as ours, so that its middleware and retries know them; knows no engine."""

from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError

from reattention_core.errors import AnswerTimeoutError, ContextTooLongError


class PromptTooLongError(ContextTooLongError, ContextOverflowError):
    """A prompt and its answer may take `n_tokens` tokens, more than `limit`; nothing is ever cut off."""


class ModelTooSlowError(AnswerTimeoutError, ModelTimeoutError):
    """An answer took longer than its `timeout`; the model was stopped."""
