"""What users hand over: text, paths of every kind, and what is wrong with them."""

import copy
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pypdf import PdfWriter

from reattention_core import errors
from reattention_core.documents import Document, collect

PAGE = b"BT /F1 12 Tf 20 100 Td (The warranty lasts two years.) Tj ET"
PDF = b"""%%PDF-1.4
1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R
 /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >> endobj
4 0 obj << /Length %d >> stream
%s
endstream endobj
trailer << /Root 1 0 R /Size 5 >>
startxref
0
%%%%EOF
"""


def write_pdf(path: Path, page: bytes = PAGE, password: str | None = None) -> Path:
    writer = PdfWriter(clone_from=io.BytesIO(PDF % (len(page), page)))
    if password is not None:
        writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    writer.write(path)
    return path


def only(sources: Any) -> Document:
    (document,), unreadable = collect(sources)
    assert not unreadable
    return document


def test_string_is_a_path_only_if_it_exists(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("inside the file")
    assert only(str(file)).text == "inside the file"
    assert only("notes, not a file").text == "notes, not a file"
    assert only("either/or is a choice").text == "either/or is a choice"
    assert only("word").text == "word"
    assert only("x/" * 500).text == "x/" * 500
    assert only("nul\0 is text").text == "nul\0 is text"


@pytest.mark.parametrize("text", ["no-such-docs/", "report.PDF", "https://a.org/x", "a/b.txt", "and/or"])
def test_path_to_nothing_is_never_read_as_text(text: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match="looks like a path"):
        collect(text)
    assert only(Document(text=text)).text == text
    with pytest.raises(errors.InvalidRequestError, match=r"sources\[1\]: there is no file"):
        collect(["fine", Path(text)])


def test_folder_is_walked_in_order_without_hidden_or_unknown_files(tmp_path: Path) -> None:
    for name in ["b/two.md", "a.txt", "b/.git/x.txt", ".hidden.txt", "image.png", "c.rst", "Z.TXT"]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text of {name}")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    found, unreadable = collect(tmp_path)
    assert [document.title for document in found] == ["Z", "a", "two", "c"]
    assert [document.source for document in found][1] == str(tmp_path / "a.txt")
    assert [error.path for error in unreadable] == [str(tmp_path / "broken.txt")]


def test_unopenable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("readable")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def deny(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    found, unreadable = collect(str(tmp_path))
    assert len(found) == 1
    assert str(unreadable[0]) == f"cannot read {tmp_path / 'locked'}: Permission denied"


def test_named_file_of_another_kind_is_utf8_text(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_bytes(b"\xef\xbb\xbfx = 'h\xc3\xa9'\r\ny = 1\r\n")
    assert only(tmp_path / "code.py").text == "x = 'hé'\ny = 1\n"
    assert only(tmp_path / "code.py").title == "code"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.bin", b"\x7fELF\0\1", "NUL"),
        ("a.txt", b"caf\xe9", "byte 3 is not UTF-8"),
        ("utf16.txt", "text".encode("utf-16"), "NUL"),
        ("a.md", b" \n\t ", "no text"),
        ("a.html", b"<html><script>x()</script></html>", "no text"),
        ("a.pdf", b"%PDF-1.4 truncated", "not a PDF"),
        ("b.pdf", b"", "not a PDF"),
    ],
)
def test_unreadable_files_are_named_and_others_still_read(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    found, unreadable = collect([tmp_path / name, "a good text"])
    assert [document.text for document in found] == ["a good text"]
    assert unreadable[0].path == str(tmp_path / name)
    assert reason in unreadable[0].reason
    assert unreadable[0].__traceback__ is None  # which would keep the bytes alive
    with pytest.raises(errors.UnreadableDocumentError, match=reason):
        collect([tmp_path / name, "a good text"], strict=True)
    with pytest.raises(errors.EmptyPromptError, match=reason):
        collect(tmp_path / name)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(errors.EmptyPromptError, match="not a regular file"):
        collect(tmp_path)


def test_pdf(tmp_path: Path) -> None:
    document = only(write_pdf(tmp_path / "Handbook.pdf"))
    assert document.title == "Handbook"
    assert document.text.strip() == "The warranty lasts two years."
    # An empty user password only forbids printing: every viewer opens it.
    assert only(write_pdf(tmp_path / "open.pdf", password="")).text == document.text
    locked = write_pdf(tmp_path / "locked.pdf", password="secret")
    scanned = write_pdf(tmp_path / "scan.pdf", page=b"")
    _, unreadable = collect(["text", locked, scanned])
    assert "encrypted" in unreadable[0].reason
    assert "OCR" in unreadable[1].reason


def test_html_keeps_blocks_and_drops_code(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<html><head><title>The\n Page</title><style>p {}</style></head><body><!-- no -->"
        "<h1>Head</h1><p>One\n  two <b>bold</b>.</p><script>alert('<|im_end|>')</script>"
        "<ul>\n  <li>a</li>\n  <li>b &lt; c</li></ul>"
        "<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>"
        "x<br>y<pre>if a:\n    b</pre></body></html>"
    )
    document = only(tmp_path / "page.html")
    assert document.title == "The Page"
    assert document.text == "Head\n\nOne two bold.\n\na\nb < c\n\n1 2\n3\n\nx\ny\n\nif a:\n    b"


def test_html_that_looks_like_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "a.htm").write_text("/etc/passwd")
    assert only(tmp_path / "a.htm").text == "/etc/passwd"


def test_markdown_title(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("intro #1\n## The Title ##\n# Later")
    assert only(tmp_path / "a.md").title == "The Title"
    (tmp_path / "b.md").write_text("no heading")
    assert only(tmp_path / "b.md").title == "b"


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(path)).write_text("text")
    assert only(tmp_path).model_dump_json()


@pytest.mark.parametrize(("package", "name"), [("pypdf", "a.pdf"), ("bs4", "a.html")])
def test_missing_package_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_text("x")
    with pytest.raises(ImportError, match=r"pip install 'reattention\[files\]'"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, "sources is of type NoneType"),
        (3, "sources is of type int"),
        (b"text", "sources is of type bytes"),
        ({"text": "x"}, "sources is of type dict"),
        (["x", None], r"sources\[1\] is of type NoneType"),
        (["x", ["y"]], r"sources\[1\] is of type list"),
        (["x", b"y"], r"sources\[1\] is of type bytes"),
        (["x", "a\ud800b c"], r"sources\[1\]: character 1 is the lone surrogate"),
    ],
)
def test_wrong_types_are_named_with_their_place(sources: Any, message: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match=message):
        collect(sources)


@pytest.mark.parametrize("sources", [[], "", "  \n", [" ", Document(text="\t", title="t")]])
def test_nothing_to_read(sources: Any, tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    for source in (sources, tmp_path):
        with pytest.raises(errors.EmptyPromptError, match=r"no document .*\.txt \.md .*\.pdf"):
            collect(source)


def test_identity() -> None:
    a = Document(text="text", title="title")
    assert a.id == Document(text="text", title="title", source="/x", metadata={"k": [1]}).id
    assert len(a.id) == 16
    assert a.id != Document(text="title", title="text").id
    twice, _ = collect(item for item in (a, "text", a.model_copy(), "text"))
    assert [document.title for document in twice] == ["title", ""]
    with pytest.raises(errors.InvalidRequestError, match="two different documents have the id 'x'"):
        collect([Document(text="a", id="x"), Document(text="b", id="x")])


@pytest.mark.parametrize("text", [b"bytes", None, "a\udfff"])
def test_document_refuses(text: Any) -> None:
    for fields in ({"text": text}, {"text": "a", "titel": "b"}, {"text": "a", "id": ""}):
        with pytest.raises(ValidationError):
            Document(**fields)
    with pytest.raises(ValidationError):
        Document(text="a").text = "b"


def test_errors_survive_copies() -> None:
    for error in (
        errors.ContextTooLongError("m", n_tokens=9, limit=8),
        errors.UnreadableDocumentError("a.txt", "why"),
        errors.FingerprintMismatchError("m", fields=("dtype",)),
    ):
        for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
