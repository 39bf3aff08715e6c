"""Writes the table of docs/frameworks.md from the tests: which feature is shown in which framework by which test.

    python -m tests.frameworks.table

A test says what it shows, `@pytest.mark.shows("tools")`, with words of FEATURES. Its framework is in its file's name; a file
that names none is about both. The tests are read as text, not imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.frameworks.test_langchain_standard import NOT_APPLICABLE, SCRIPTED

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs" / "frameworks.md"
BEGIN, END = "<!-- written by python -m tests.frameworks.table -->\n", "<!-- end of what is written -->"

FEATURES = (
    "answers, whole and streamed, also asynchronous",
    "the same text as the library's own",
    "settings of an instance and of a call, stop strings",
    "arguments that would have no effect are refused",
    "messages and blocks, also those of other models",
    "usage and cached tokens",
    "callbacks, instrumentation, events",
    "callbacks that raise",
    "errors of the model",
    "the event loop is never blocked",
    "closing and cancelling stop the model",
    "many at once, batches",
    "prompts beyond the capacity are an error with both numbers",
    "answers that take too long",
    "weights are loaded late and shared",
    "serialising holds no model",
    "what the framework plans with",
    "without the extra, the error names the pip command",
    "tools",
    "structured output",
    "answers out of a corpus, with sources",
    "citations",
    "retriever",
    "a corpus as a tool",
    "a corpus in front of every question",
    "an index: from_documents, insert, delete, refresh",
    "an index: persist and load",
    "an index: query engine and source nodes",
    "an index: chat engines",
    "query engines of the framework",
    "chat engines of the framework",
    "agents",
    "chains",
    "stock chains over a long stuffed prompt",
    "caches",
    "fallbacks",
    "the framework's standard tests",
)


class Shown(NamedTuple):
    """That a test shows a feature."""

    feature: str
    frameworks: tuple[str, ...]
    file: str
    test: str


def shown() -> Iterator[Shown]:
    """What the tests say they show."""
    for path in sorted(FOLDER.glob("test_*.py")):
        name = path.stem.removeprefix("test_")
        one = "LlamaIndex" if name.startswith("llama_index") else "LangChain" if name.startswith("langchain") else None
        frameworks = (one,) if one else ("LlamaIndex", "LangChain")
        for node in ast.parse(path.read_text()).body:
            for mark in getattr(node, "decorator_list", []):
                if ast.unparse(mark).startswith("pytest.mark.shows("):
                    for word in mark.args:
                        yield Shown(ast.literal_eval(word), frameworks, path.name, node.name)


def table() -> str:
    """The part of the document between its marks."""
    found = list(shown())

    def cell(feature: str, framework: str) -> str:
        here = [one for one in found if one.feature == feature and framework in one.frameworks]
        return "<br>".join(f"[{one.test}](../tests/frameworks/{one.file})" for one in here) or "—"

    rows = [f"| {feature} | {cell(feature, 'LlamaIndex')} | {cell(feature, 'LangChain')} |" for feature in FEATURES]
    scripted = [f"- `{test}`: {reason}." for test, (reason, _) in SCRIPTED.items()]
    left_out = [f"- `{test}`: {reason}." for test, reason in NOT_APPLICABLE.items()]
    return "\n".join(
        [
            "| feature | LlamaIndex | LangChain |",
            "| --- | --- | --- |",
            *rows,
            "",
            "Standard tests of LangChain that are led by a script, on the same class and the same model:",
            "",
            *scripted,
            "",
            "Standard tests that do not apply, and skip themselves:",
            "",
            *left_out,
            "",
        ]
    )


def written() -> str:
    """What the document says now between its marks."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.split(END)[1])
