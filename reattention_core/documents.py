"""Turns what a user hands over (text, paths, folders) into documents; knows no tokens or models.

A string is a path if it names something that exists. If it only looks like a path it is refused,
so that a misspelt file name is never read as a one-line document. Anything else is text.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict

from reattention_core.errors import (
    EmptyPromptError,
    InvalidRequestError,
    UnreadableDocumentError,
)
from reattention_core.readers import SUFFIXES, read_file, replace_surrogates


def check_encodable(text: str) -> str:
    """Returns `text` if a tokenizer can take it.

    Raises:
        InvalidRequestError: It is not a string, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"expected text (str), got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"character {error.start} is the lone surrogate {text[error.start]!r}, which is not"
            " text; decode the source as UTF-8 or replace it"
        ) from error
    return text


def content_id(fields: dict[str, Any]) -> str:
    """The id of a document that was given none: a hash of what the model reads of it, its title and text."""
    return hashlib.sha256(f"{fields['title']}\0{fields['text']}".encode()).hexdigest()[:16]


_Text = Annotated[str, Strict(), AfterValidator(check_encodable)]


class Document(BaseModel):
    """One text to read; immutable, and equal to any other with the same fields.

    Attributes:
        text: What the model reads; spans and sources count its characters.
        title: What the model reads first, on a line of its own; may be empty.
        id: Names the document in a corpus; by default a hash of title and text.
        source: The path or URL it came from; never opened again.
        metadata: Anything JSON can hold; handed back with the sources of an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: _Text
    title: _Text = ""
    id: _Text = Field(default_factory=content_id, min_length=1)  # after the fields it hashes
    source: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


Source = str | Path | Document


def collect(
    sources: Source | Iterable[Source], *, strict: bool = False
) -> tuple[list[Document], list[UnreadableDocumentError]]:
    """Reads every source, in order, and keeps a document that comes twice once.

    Args:
        sources: Text, the path of a file or folder, a Document, or an iterable of these. Folders
            are walked in sorted order, without hidden entries, for files with one of SUFFIXES.
        strict: Raise the first UnreadableDocumentError instead of returning it.

    Returns:
        The documents, and one error for each that could not be read or holds no text.

    Raises:
        InvalidRequestError: A source is of another type, is a path to nothing, holds a lone
            surrogate, or two different documents have one id.
        EmptyPromptError: Not one document could be read.
    """
    documents: dict[str, Document] = {}
    unreadable: list[UnreadableDocumentError] = []
    places = list(_places(sources))
    for place, source in places:
        for result in _read(place, source):
            if isinstance(result, UnreadableDocumentError):
                if strict:
                    raise result
                unreadable.append(result)
                continue
            kept = documents.setdefault(result.id, result)
            if (kept.title, kept.text) != (result.title, result.text):
                raise InvalidRequestError(
                    f"{place}: two different documents have the id {result.id!r}; give each its"
                    " own, or leave `id` out to have it made from the content"
                )
    if not documents:
        got = ", ".join(f"{str(source)[:80]!r}" for _, source in places[:3]) or "an empty iterable"
        raise EmptyPromptError(
            f"no document to read: {len(places)} sources ({got}), {len(unreadable)} unreadable. "
            + " ".join(f"{error}." for error in unreadable[:3])
            + f" Pass text, a Document, or files and folders with {' '.join(SUFFIXES)}"
        )
    return list(documents.values()), unreadable


def _places(sources: Source | Iterable[Source]) -> Iterator[tuple[str, Source]]:
    if isinstance(sources, str | Path | Document):
        yield "sources", sources
        return
    # Iterating these gives integers and keys, which is never what was meant.
    if isinstance(sources, bytes | bytearray | Mapping) or not isinstance(sources, Iterable):
        raise _wrong_type("sources", sources)
    for index, source in enumerate(sources):
        if not isinstance(source, str | Path | Document):
            raise _wrong_type(f"sources[{index}]", source)
        yield f"sources[{index}]", source


def _wrong_type(place: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"{place} is of type {type(value).__name__}; allowed are text or a path (str), Path,"
        " Document and an iterable of these"
    )


def _read(place: str, source: Source) -> Iterator[Document | UnreadableDocumentError]:
    if isinstance(source, Document):
        yield _unless_blank(place, source)
    elif isinstance(source, str) and not _is_path(place, source):
        try:
            check_encodable(source)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{place}: {error}") from error
        yield _unless_blank(place, Document(text=source))
    elif os.path.isdir(source):
        denied: list[OSError] = []
        for path in sorted(_walk(Path(source), denied)):
            yield _read_file(path)
        for denial in denied:
            yield UnreadableDocumentError(str(denial.filename), denial.strerror or str(denial))
    elif os.path.exists(source):
        yield _read_file(Path(source))
    else:
        raise InvalidRequestError(f"{place}: there is no file or folder {str(source)!r}")


def _is_path(place: str, text: str) -> bool:
    if os.path.exists(text):
        return True
    one_word = len(text) <= 255 and not any(character.isspace() for character in text)
    if one_word and ("/" in text or os.sep in text or text.lower().endswith(SUFFIXES)):
        raise InvalidRequestError(
            f"{place} is {text!r}: it looks like a path, and there is no such file or folder."
            " Correct it (URLs are not fetched), or pass Document(text=...) if it is the text"
        )
    return False


def _walk(folder: Path, denied: list[OSError]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, onerror=denied.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(root, name)


def _read_file(path: Path) -> Document | UnreadableDocumentError:
    try:
        title, text = read_file(path)
    except UnreadableDocumentError as error:
        # A new one: the traceback of this one would keep the bytes of the file alive.
        return UnreadableDocumentError(replace_surrogates(error.path), error.reason)
    source = replace_surrogates(str(path))
    return _unless_blank(source, Document(text=text, title=title, source=source))


def _unless_blank(place: str, document: Document) -> Document | UnreadableDocumentError:
    if document.text.strip():
        return document
    return UnreadableDocumentError(place, "it holds no text (a scanned PDF needs OCR first)")
