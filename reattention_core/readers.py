"""Turns one file into a title and a text; knows nothing of folders, documents or tokens.

Text files are UTF-8 or they are refused: a guessed encoding is a corpus of wrong letters that
nobody notices. PDF and HTML need `pip install 'reattention[files]'`.
"""

import io
import re
from pathlib import Path

from reattention_core.errors import UnreadableDocumentError

SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".pdf")

_NOT_TEXT = ("script", "style", "template", "title")
_PARAGRAPHS = (
    "address article aside blockquote body dd div dl dt figcaption figure footer form h1 h2 h3 h4"
    " h5 h6 head header hr main nav ol p pre section table ul"
)
# What stands before and after the text of an element.
_GAPS = {
    **dict.fromkeys(_PARAGRAPHS.split(), "\n\n"),
    **dict.fromkeys(("br", "li", "tr"), "\n"),
    **dict.fromkeys(("td", "th"), " "),
}


def read_file(path: Path) -> tuple[str, str]:
    """Reads one file.

    Args:
        path: A file; its suffix picks the reader, and any unknown one means UTF-8 text.

    Returns:
        The title (an HTML <title>, the first Markdown heading, else the file's stem) and the text.

    Raises:
        UnreadableDocumentError: The file cannot be opened, or does not hold what it should.
        ImportError: The package that reads this kind of file is not installed.
    """
    suffix = path.suffix.lower()
    if not path.is_file():  # a pipe or a device would block, or never end
        raise UnreadableDocumentError(str(path), "it is not a regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableDocumentError(str(path), error.strerror or str(error)) from error
    title = ""
    if suffix == ".pdf":
        text = _pdf_text(path, data)
    else:
        text = _decode(path, data)
        if suffix in (".html", ".htm"):
            title, text = _html_title_and_text(text)
        elif suffix == ".md":
            heading = re.search(r"^#{1,6}[ \t]+(\S.*)$", text, re.MULTILINE)
            title = heading[1].strip().rstrip("#") if heading else ""
    return replace_surrogates(" ".join(title.split()) or path.stem), replace_surrogates(text)


def replace_surrogates(text: str) -> str:
    """Makes text a tokenizer can take of what a file name or a broken PDF may hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decode(path: Path, data: bytes) -> str:
    if b"\0" in data:
        raise UnreadableDocumentError(str(path), "it holds NUL bytes: a binary file, or text that is not UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableDocumentError(
            str(path), f"byte {error.start} is not UTF-8; convert the file to UTF-8 first"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's own text mode does


def _pdf_text(path: Path, data: bytes) -> str:
    try:
        import pypdf
    except ImportError as error:
        raise ImportError("PDF files need pypdf: pip install 'reattention[files]'") from error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # Many files are encrypted with an empty password only to forbid printing.
        locked = reader.is_encrypted and not reader.decrypt("")
        text = "" if locked else "\n\n".join(page.extract_text() for page in reader.pages)
    except Exception as error:  # a broken PDF can make the parser raise anything
        reason = f"not a PDF that pypdf can read ({type(error).__name__}: {error})"
        raise UnreadableDocumentError(str(path), reason) from error
    if locked:
        raise UnreadableDocumentError(str(path), "it is encrypted; save it without its password")
    return text


def _html_title_and_text(markup: str) -> tuple[str, str]:
    try:
        from bs4 import BeautifulSoup
        from bs4.element import NavigableString, PageElement, Tag
    except ImportError as error:
        raise ImportError("HTML files need beautifulsoup4: pip install 'reattention[files]'") from error
    # The newline keeps bs4 from warning that a short file looks like a file name.
    soup = BeautifulSoup(markup + "\n", "html.parser")
    pieces = ["\n"]  # never an empty one
    # A stack, since nesting may be deeper than Python's; and no edits to the tree, since bs4 takes
    # time quadratic in the siblings for those. A plain string on it is the gap after an element.
    stack: list[PageElement | str] = [soup]
    while stack:
        node = stack.pop()
        if isinstance(node, Tag):
            if node.name in _NOT_TEXT:
                continue
            gap = _GAPS.get(node.name, "")
            _add_gap(pieces, gap)
            stack.append(gap)
            if node.name == "pre":
                pieces.append(node.get_text() or "\n")
            else:
                stack += reversed(node.contents)
        elif type(node) is NavigableString:  # its subclasses are comments and declarations
            text = re.sub(r"\s+", " ", node)
            if pieces[-1][-1].isspace():
                text = text.removeprefix(" ")
            if text:
                pieces.append(text)
        elif type(node) is str:
            _add_gap(pieces, node)
    lines = (line.rstrip() for line in "".join(pieces).split("\n"))
    title = soup.title.get_text() if soup.title else ""
    return title, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _add_gap(pieces: list[str], gap: str) -> None:
    if gap and (gap == "\n\n" or not pieces[-1].endswith(("\n", gap))):
        pieces.append(gap)
