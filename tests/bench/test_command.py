"""`reattention bench` from its arguments to its report; bad ones fail before any model is loaded."""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner, Result

from reattention_bench.plots import figures
from reattention_bench.report import rows_in, write_report
from reattention_bench.rows import Rows, number, read
from reattention_bench.summary import summarise, table
from reattention_core import Engine
from reattention_core.cli import app
from reattention_core.errors import InvalidRequestError


@pytest.fixture(autouse=True, scope="module")
def loud_transformers() -> Iterator[None]:
    """The command silences transformers for its whole process: undone here."""
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.enable_progress_bar()
    transformers_logging.set_verbosity(verbosity)
    logging.getLogger("reattention_core").handlers.clear()


def bench(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_measures_and_reports(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "passkey",
        "-n",
        300,
        "-n",
        600,
        "--draws",
        2,
        "-m",
        "consensus",
        "-m",
        "full",
        "--model",
        folder,
        "--out",
        out,
    ]
    done = bench(*arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"passkey +300 +report +consensus +2 ", done.stdout)
    assert len(list(read(out / "rows.csv"))) == 8
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) > 1
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page needs nothing beside it"
    assert (out / "summary.txt").read_text() == done.stdout
    again = bench(*arguments)
    assert again.exit_code == 0
    assert "holds 8 rows" in again.stderr
    assert again.stdout == done.stdout
    alone = bench("--out", out)
    assert alone.stdout == done.stdout, "without a task the report is made again"


def test_no_report(folder: Path, tmp_path: Path) -> None:
    done = bench(
        "passkey", "-n", 300, "--draws", 1, "-m", "closed", "--model", folder, "--out", tmp_path / "o", "--no-report"
    )
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["passky"], "unknown task 'passky'; did you mean 'passkey'"),
        (["passkey", "-m", "consensu"], "did you mean 'consensus'"),
        (["passkey", "-m", "consensus:max_passages=0"], "max_passages"),
        (["passkey", "-n", "10"], "at least 64 tokens"),
        (["niah_multivalue", "-n", "70", "--haystack", "noise", "-m", "closed"], "pass a larger --length"),
        (["passkey", "--depth", "1.5"], "a depth runs from 0"),
        (["passkey", "--draws", "0"], "'--draws'"),
        (["niah_single", "--data", "/nowhere"], "pass the folder that holds it with --data"),
        (["hotpot200", "--data", "/nowhere"], "pass the folder that holds the corpora with --data"),
        (["perplexity", "-m", "bm25"], "perplexity cannot be measured with bm25"),
        (["passkey", "-n", "64000", "-m", "full"], "full needs a GPU, and there is none here"),
        (["passkey", "-n", "700000", "-m", "consensus"], "lower --length"),
        (["passkey", "-n", "300", "--setting", "sinks=a"], "unknown setting 'sinks'; did you mean 'sink'"),
        (["--out", "/nowhere/at/all"], "there are no rows"),
    ],
)
def test_bad_arguments_fail_before_the_model(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    done = bench(*arguments, "--model", folder, *out)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_names_its_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("passkey", "-n", 300, "--model", folder, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "pip install 'reattention[bench]'" in done.stderr


def test_lists_tasks_and_methods() -> None:
    done = bench("--list")
    assert done.exit_code == 0
    for name in ("passkey", "hotpot200", "consensus", "yarn", "embeddings"):
        assert name in done.stdout


def test_help_comes_without_the_lab() -> None:
    code = (
        "import sys; from reattention_core.cli import app; app(['bench', '--help'], standalone_mode=False); "
        "assert not {'torch', 'reattention_bench', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# tables and plots, from rows that are known


def rows_of(folder: Path) -> Path:
    rows = Rows(folder / "rows.csv")
    about = {"model": "m", "split": "report", "status": "ok", "tokens": "100", "seconds": "0.5"}
    for task, length in (("niah_single", 1000), ("niah_single", 8000)):
        for seed in range(10):
            fields = {
                "task": task,
                "method": "consensus",
                "length": str(length),
                "seed": str(seed),
                "depth": number(seed / 10),
            }
            rows.append(
                about | fields | {"score": str(int(seed < 8)), "recall@1": "1", "recall@3": "1", "recall@5": "1"}
            )
    rows.append(
        about
        | {"task": "niah_single", "method": "full", "length": "8000", "status": "failed", "note": "<b>no memory</b>"}
    )
    for length, value in ((1000, "20"), (8000, "19.5")):
        for method in ("full", "reattention"):
            fields = {"task": "perplexity", "method": method, "length": str(length), "seed": "1", "score": value}
            rows.append(about | fields)
    return folder


def test_the_table(tmp_path: Path) -> None:
    lines = summarise(rows_in(rows_of(tmp_path)))
    by_key = {(line.task, line.method, line.length): line for line in lines}
    needle = by_key["niah_single", "consensus", 8000]
    assert (needle.n, needle.failed, needle.score, needle.recall[1]) == (10, 0, 0.8, (1.0, 10))
    assert needle.interval == (pytest.approx(0.490, abs=0.001), pytest.approx(0.943, abs=0.001))
    failed = by_key["niah_single", "full", 8000]
    assert (failed.n, failed.failed, failed.score) == (0, 1, None)
    assert by_key["perplexity", "full", 1000].interval is None
    text = table(lines)
    assert re.search(r"niah_single +8,000 +report +consensus +10 +0\.800 +0\.49-0\.94", text)
    assert "F1" not in text, "a column that nothing fills is left out"


def test_the_pictures(tmp_path: Path) -> None:
    made = figures(rows_in(rows_of(tmp_path)))
    kinds = {name.rsplit("-", 1)[1] for name in made}
    assert kinds == {"length", "recall", "depth", "position"}
    (scores,) = [figure for name, figure in made.items() if name.endswith("-length")]
    (line,) = scores.axes[0].containers
    assert line[0].get_xydata().tolist() == [[1000, 0.8], [8000, 0.8]]
    (grid,) = [figure for name, figure in made.items() if name.endswith("-depth")]
    assert grid.axes[0].images[0].get_array().tolist() == [[1.0, 1.0]] * 8 + [[0.0, 0.0]] * 2


def test_the_page_escapes_and_gathers_all_files(tmp_path: Path) -> None:
    rows_of(tmp_path)
    (tmp_path / "other.csv").write_bytes((tmp_path / "rows.csv").read_bytes().replace(b",consensus,", b",bm25,"))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;no memory&lt;/b&gt;" in page
    assert "<b>no" not in page
    assert "bm25" in page
    with pytest.raises(InvalidRequestError, match="no rows"):
        write_report(tmp_path / "nothing")
