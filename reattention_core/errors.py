"""Names every way a call into this library can fail; knows nothing of models, files or servers.

    ReAttentionError
        InvalidRequestError (also a ValueError)
            ContextTooLongError         n_tokens, limit
            EmptyPromptError
            UnsupportedModelError
            InvalidConfigError
            UnreadableDocumentError     path, reason
        CorpusNotFoundError
        CorpusExistsError
        CapacityError                   needed, free
        CorpusError
            FingerprintMismatchError    fields
            CorruptCacheError
            CacheVersionError
            PartialCacheError
        StorageFullError
        QueueFullError                  waiting, limit
        EngineClosedError
        CancelledError
        AnswerTimeoutError (also a TimeoutError)
        IncompleteAnswerError           text

A caller who wants one `except` takes ReAttentionError. Every message says what was got, what is
allowed and what to do; the attributes above are for callers that act on an error.
"""

import copyreg
from typing import Any


class ReAttentionError(Exception):
    """Anything this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Says how to copy and pickle an error."""
        # The default calls the class with the message alone, which fails where attributes are
        # required; errors must survive a copy and the way back from a worker process.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidRequestError(ReAttentionError, ValueError):
    """The caller asked for something that cannot be done as asked."""


class ContextTooLongError(InvalidRequestError):
    """The request has more tokens than the configured limit; nothing is ever cut off silently."""

    def __init__(self, message: str, *, n_tokens: int, limit: int) -> None:
        """Takes the message, and both counts in tokens."""
        super().__init__(message)
        self.n_tokens = n_tokens
        self.limit = limit


class EmptyPromptError(InvalidRequestError):
    """There is no text to work on."""


class UnsupportedModelError(InvalidRequestError):
    """This model or its tokenizer cannot be used; the message says which part and why."""


class InvalidConfigError(InvalidRequestError):
    """A setting has a value it cannot have; the message names the field."""


class UnreadableDocumentError(InvalidRequestError):
    """One document could not be read; others may have been."""

    def __init__(self, path: str, reason: str) -> None:
        """Makes the message of the path (or place in the input) and the reason."""
        super().__init__(f"cannot read {path}: {reason}")
        self.path = path
        self.reason = reason


class CorpusNotFoundError(ReAttentionError):
    """No corpus is stored under this name."""


class CorpusExistsError(ReAttentionError):
    """A corpus with other contents is already stored under this name."""


class CapacityError(ReAttentionError):
    """The memory this would take is not there; sizes are in bytes."""

    def __init__(self, message: str, *, needed: int, free: int) -> None:
        """Takes the message, and both sizes in bytes."""
        super().__init__(message)
        self.needed = needed
        self.free = free


class CorpusError(ReAttentionError):
    """A stored corpus cannot be used as it is."""


class FingerprintMismatchError(CorpusError):
    """A stored corpus was made with another model, tokenizer or setting; `fields` names which."""

    def __init__(self, message: str, *, fields: tuple[str, ...]) -> None:
        """Takes the message, and the names of the fields that differ."""
        super().__init__(message)
        self.fields = fields


class CorruptCacheError(CorpusError):
    """Stored bytes are not the bytes that were written."""


class CacheVersionError(CorpusError):
    """A stored corpus is in a newer format than this version reads."""


class PartialCacheError(CorpusError):
    """Some of a stored corpus is missing."""


class StorageFullError(ReAttentionError):
    """The disk has no room, or cannot be written; nothing is left half-saved."""


class QueueFullError(ReAttentionError):
    """Too many requests wait for the model; nothing was started."""

    def __init__(self, message: str, *, waiting: int, limit: int) -> None:
        """Takes the message, how many wait and how many may."""
        super().__init__(message)
        self.waiting = waiting
        self.limit = limit


class EngineClosedError(ReAttentionError):
    """The engine was closed, or died of the error this one was raised from."""


class CancelledError(ReAttentionError):
    """The caller cancelled the work; nothing partial was kept."""


class AnswerTimeoutError(ReAttentionError, TimeoutError):
    """An answer took longer than it was given, waiting included; the model was stopped, or never started."""


class IncompleteAnswerError(ReAttentionError):
    """An answer that had to be JSON or a tool call ended before it was; `text` is what was written."""

    def __init__(self, message: str, *, text: str) -> None:
        """Takes the message, and what the model wrote."""
        super().__init__(message)
        self.text = text
