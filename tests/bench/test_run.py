"""A run from its plan to its rows: order, failures, and going on after a kill."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_bench import haystack
from reattention_bench import run as running
from reattention_bench.case import Size
from reattention_bench.corpora import Corpora
from reattention_bench.methods import retrieval
from reattention_bench.methods.over_corpus import OverCorpus
from reattention_bench.methods.prompted import Closed
from reattention_bench.plan import Plan, prepare
from reattention_bench.rows import Row, Rows, read
from reattention_bench.run import run
from reattention_core import Config, Engine
from reattention_core.errors import CapacityError

METHODS = ["consensus", "longheads", "sink-local", "closed", "bm25:k=1", "full"]
SIZE = Size(lengths=(240, 480), draws=2, haystack="noise")


@pytest.fixture
def plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Twenty-four rows; documents and passages are small, as the model's window is."""
    monkeypatch.setattr(haystack, "PER_DOCUMENT", 250)
    monkeypatch.setattr(retrieval, "WORDS", 20)
    retrieval._parts.cache_clear()
    return prepare(["passkey"], METHODS, SIZE, model=str(folder), commit="abc")


@pytest.fixture
def engines(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Iterator[Callable[[], Engine]]:
    """As many engines as wanted, one after another, on the same model."""
    made: list[Engine] = []

    def fresh() -> Engine:
        if made:
            made[-1].close()
        made.append(Engine(model, tokenizer, Config(cache_dtype="float32"), tmp_path / "store"))
        return made[-1]

    yield fresh
    if made:
        made[-1].close()


def told(rows: list[Row]) -> list[dict[str, str]]:
    """What must not depend on the day, in a fixed order."""
    kept = [{name: row[name] for name in row if name not in ("seconds", "ingest_seconds")} for row in rows]
    return sorted(kept, key=str)


def measured(path: Path, plan: Plan, engine: Engine) -> list[Row]:
    run(plan, Rows(path), engine, progress=False)
    return list(read(path))


def test_a_row_for_every_case(plan: Plan, engines: Callable[[], Engine], tmp_path: Path) -> None:
    rows = measured(tmp_path / "rows.csv", plan, engines())
    assert len(rows) == 2 * 2 * len(METHODS)
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["model"], row["commit"], row["settings"]) for row in rows} == {("tiny", "abc", "haystack=noise")}
    assert {row["method"] + (":" + row["parameters"] if row["parameters"] else "") for row in rows} == set(METHODS)
    for row in rows:
        assert row["score"] in ("0", "1")
        assert int(row["tokens"]) > 0
        assert "torch" in row["versions"]
        assert (row["recall@1"] != "") == (row["method"] in ("consensus", "longheads", "bm25"))
        assert row["split"] == "report"
    assert {row["recall@1"] for row in rows if row["method"] == "bm25"} == {"1"}


def test_killed_in_the_middle_and_gone_on(plan: Plan, engines: Callable[[], Engine], tmp_path: Path) -> None:
    """After a kill while a row was being written, a rerun ends with the rows of an unbroken run."""
    whole = measured(tmp_path / "whole.csv", plan, engines())
    path, calls = tmp_path / "rows.csv", 0

    class Dying(Rows):
        def append(self, row: Row) -> None:
            nonlocal calls
            calls += 1
            super().append(row)
            if calls == 8:
                path.write_bytes(path.read_bytes()[:-25])  # the last bytes never reached the disk
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, Dying(path), engines(), progress=False)
    rows = Rows(path)
    assert len(rows.kept) == 7
    appended: list[Row] = []
    append = rows.append
    rows.append = lambda row: (appended.append(row), append(row))[1]  # type: ignore[method-assign,func-returns-value]
    run(plan, rows, engines(), progress=False)
    assert len(appended) == len(whole) - 7
    assert told(list(read(path))) == told(whole)


def test_nothing_left_loads_no_model(
    plan: Plan, engines: Callable[[], Engine], tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "rows.csv"
    measured(path, plan, engines())
    before = path.read_bytes()
    monkeypatch.setattr(Engine, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    run(plan, Rows(path))
    assert path.read_bytes() == before


def test_a_failing_method_is_a_row(
    plan: Plan, engines: Callable[[], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Closed, lab: Any, case: Any) -> Any:
        raise RuntimeError("it\nbroke")

    path, whole = tmp_path / "rows.csv", Closed.answer
    monkeypatch.setattr(Closed, "answer", fail)
    rows = measured(path, plan, engines())
    assert len(rows) == 24
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["method"] for row in failed] == ["closed"] * 4
    assert {(row["score"], row["note"]) for row in failed} == {("", "RuntimeError: it\\nbroke")}
    monkeypatch.setattr(Closed, "answer", whole)
    assert len(measured(path, plan, engines())) == 24, "what failed is not tried again by itself"
    run(plan, Rows(path, retry=True), engines(), progress=False)
    again = list(read(path))
    assert len(again) == 24
    assert {row["status"] for row in again} == {"ok"}


def test_a_corpus_that_cannot_be_read_fails_its_methods_only(
    plan: Plan, engines: Callable[[], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise CapacityError("no room", needed=2, free=1)

    monkeypatch.setattr(Corpora, "_ingest", full)
    rows = measured(tmp_path / "rows.csv", plan, engines())
    assert len(rows) == 24
    by_status = {row["method"]: row["status"] for row in rows}
    assert by_status == {
        "consensus": "failed", "longheads": "failed", "sink-local": "failed", "closed": "ok", "bm25": "ok", "full": "ok"
    }  # fmt: skip
    assert {row["note"] for row in rows if row["status"] == "failed"} == {"CapacityError: no room"}


def test_every_method_meets_the_same_documents_and_question(
    plan: Plan, engines: Callable[[], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus that a rule reads holds the case's key, and no other case's."""
    seen, answer = [], OverCorpus.answer

    def spy(self: OverCorpus, lab: Any, case: Any) -> Any:
        text = " ".join(document.document.text for document in lab.corpus.documents)
        others = {other.answers[0] for other in lab.group.cases if other is not case}
        assert case.answers[0] in text
        assert not any(f"pass key is {other}." in text for other in others)
        assert lab.engine.config.question_form == "\n{question}"
        seen.append((self.label, case))
        return answer(self, lab, case)

    monkeypatch.setattr(OverCorpus, "answer", spy)
    engine = engines()
    form = engine.config.question_form
    rows = measured(tmp_path / "rows.csv", plan, engine)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(seen) == 12
    assert engine.config.question_form == form


def test_joint_reading(folder: Path, engines: Callable[[], Engine], tmp_path: Path) -> None:
    plan = prepare(["passkey"], ["reattention"], SIZE, model=str(folder), mode="joint")
    rows = measured(tmp_path / "rows.csv", plan, engines())
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert {row["settings"] for row in rows} == {"mode=joint,haystack=noise"}


def test_corpora_and_perplexity(folder: Path, data: Path, engines: Callable[[], Engine], tmp_path: Path) -> None:
    size = Size(data=data, splits=("tune", "report"))
    plan = prepare(["xquad_en"], ["consensus", "oracle", "bm25:k=1"], size, model=str(folder))
    rows = measured(tmp_path / "rows.csv", plan, engines())
    assert len(rows) == 18
    assert {row["status"] for row in rows} == {"ok"}
    hinted = [row for row in rows if row["case"] == "q3"]
    assert {row["score"] for row in hinted} == {""}
    assert {row["recall@5"] for row in hinted if row["method"] != "oracle"} <= {"0", "1"}
    assert sum(row["recall@1"] == "1" for row in rows if row["method"] == "bm25") >= 4
    size = replace(size, lengths=(600, 1200), draws=1, splits=("tune",))
    plan = prepare(["perplexity"], [], size, model=str(folder))
    rows = measured(tmp_path / "perplexity.csv", plan, engines())
    assert {row["method"] for row in rows} == {
        "consensus", "reattention", "longheads", "sink-local", "truncate", "full", "dynamic-ntk", "yarn"
    }  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}
    assert all(float(row["score"]) > 1 for row in rows)


def test_the_commit_is_this_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "__file__", str(tmp_path / "run.py"))
    assert running.measured_commit() == ""
