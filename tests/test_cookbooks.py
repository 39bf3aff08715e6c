"""Every cookbook's notebook is its script, executed: the same cells, with outputs, and nothing of the machine it ran on."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from cookbooks.execute import notebook

FOLDER = Path(__file__).parents[1] / "cookbooks"
SCRIPTS = sorted(FOLDER.glob("0*.py"))


def executed(script: Path) -> Any:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def test_there_are_seven() -> None:
    assert [script.name[:2] for script in SCRIPTS] == [f"0{n}" for n in range(1, 8)]
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_its_script(script: Path) -> None:
    made, kept = notebook(script), executed(script)
    assert [(c.cell_type, c.source) for c in kept.cells] == [(c.cell_type, c.source) for c in made.cells], (
        f"run `make cookbooks ONLY={script.name[:2]}`"
    )
    nbformat.validate(kept)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_was_executed_from_top_to_bottom(script: Path) -> None:
    cells = [cell for cell in executed(script).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_is_small_and_says_nothing_of_where_it_ran(script: Path) -> None:
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert not re.search(r"/(root|home|tmp|work|Users)/", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_needs_no_file_of_ours_and_no_network(script: Path) -> None:
    """What a clean clone has: the package, its extras and the bundled models."""
    source = script.read_text()
    assert not re.search(r"https?://|shared/|open\(|benchmarks/", source.replace("engine.open(", ""))
    assert "tempfile.mkdtemp()" in source, "corpora must not go among the user's"
