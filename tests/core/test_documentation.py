"""Every Python block of the README and the documentation runs, in its page's order, over a tiny model in place of a real one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, Settings

from reattention_core import Config, Engine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "integrations" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.fixture
def reader(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A folder with what a page's first lines read, and an engine that answers in 90 tokens at most whatever is asked."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "handbook.md").write_text(
        "# Warranty\n\nThe warranty is five years. The shop pays for the return."
    )
    (tmp_path / "notes.md").write_text("Customers park behind the mill.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REATTENTION_HOME", str(tmp_path / "home"))
    engine.config = Config(cache_dtype="float32", max_new_tokens=90, stop=())
    engine.ingest("The board met in March, and then it went home.", name="minutes", progress=False)

    def made(model: str = "", **_: Any) -> Engine:
        assert model in ("", "smollm2-135m-instruct"), "a page may load the bundled model alone"
        return engine

    monkeypatch.setattr(Engine, "from_pretrained", made)
    monkeypatch.setattr("reattention_core.frameworks.shared._slots", {})
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))  # for what is shown beside ours
    yield engine


def test_there_are_pages_with_code() -> None:
    assert {"README.md", "tutorial.md", "howto.md", "structured_output.md"} <= {page.name for page in WITH_CODE}
    assert sum(page.name == "README.md" for page in WITH_CODE) == 2


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, reader: Engine) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    for found in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: found.start()].count("\n") + 1
        exec(compile("\n" * line + found.group(1), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_of_this_repository_is_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:cookbooks|benchmarks|reattention_core|docs|tests)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path
