"""Puts every case to every method and appends the rows; a method that fails is a row that says so."""

import gc
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from reattention_bench.case import Case, Group
from reattention_bench.corpora import Corpora
from reattention_bench.methods import Answered, Lab, Method
from reattention_bench.metrics import recall_at
from reattention_bench.plan import Plan
from reattention_bench.rows import RECALL, Row, Rows, number
from reattention_bench.tasks import Task
from reattention_core import __version__
from reattention_core.engine import Engine
from reattention_core.select import Selector

LONGEST = 300
"""Characters of an answer or a message that a row keeps."""


def run(plan: Plan, rows: Rows, engine: Engine | None = None, progress: bool = True) -> None:
    """Measure what the file does not hold yet.

    Methods that need the model attached come first, then those that need it as transformers has it.

    Args:
        plan: checked.
        rows: the file.
        engine: a loaded model; made after the plan where left out, and then closed at the end.
        progress: whether to show a bar.
    """
    work = [
        (stock, task, group, left)
        for stock in (False, True)
        for task in plan.tasks
        for group in plan.groups[task.name]
        if (left := _left(plan, task, group, stock, rows))
    ]
    if not work:
        return
    total = sum(len(methods) for *_, left in work for _, methods in left)
    with _engine(plan, engine) as model, tqdm(total=total, unit="case", disable=None if progress else True) as bar:
        runner = _Runner(plan, rows, model, bar)
        for stock, task, group, left in work:
            if stock:
                model.attachment.detach()
            runner.group(task, group, left)


Left = list[tuple[Case, list[Method]]]
"""Cases with the methods that have not answered them."""


def _left(plan: Plan, task: Task, group: Group, stock: bool, rows: Rows) -> Left:
    """What the file does not hold of a group."""
    methods = [m for m in plan.of(task) if m.stock == stock]
    left = [(case, [m for m in methods if _key(plan, task, case, m) not in rows]) for case in group.cases]
    return [(case, waiting) for case, waiting in left if waiting]


class _Runner:
    """Answers the cases of one group after the other."""

    def __init__(self, plan: Plan, rows: Rows, engine: Engine, bar: "tqdm[Any]") -> None:
        self._plan, self._rows, self._engine, self._bar = plan, rows, engine, bar
        self._config = engine.config
        on_gpu = engine.attachment.model.device.type == "cuda"
        self._stamp = {
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU {platform.machine()}",
            "versions": _versions(),
            "commit": plan.commit or measured_commit(),
        }

    def group(self, task: Task, group: Group, left: Left) -> None:
        """Answer what is left of a group."""
        form = task.question_form or self._config.question_form
        self._engine.config = self._config.model_copy(update={"question_form": form})
        window = self._engine.window
        rules = {m.label: rule for _, methods in left for m in methods if (rule := m.selector(window)) is not None}
        corpora = Corpora(self._engine, group, self._plan.mode, list(rules.values()), self._reading)
        for case, methods in left:
            over = [m for m in methods if m.over and not task.reads]
            for method in methods:
                if method not in over:
                    self._one(Lab(self._engine, task, group), case, method, 0.0)
            for key in dict.fromkeys(corpora.key(rules[m.label]) for m in over):
                same = [m for m in over if corpora.key(rules[m.label]) == key]
                self._over(Lab(self._engine, task, group), case, same, corpora, rules[same[0].label])
        self._engine.config = self._config

    def _reading(self, done: int, total: int) -> None:
        """Shows how far the documents are read, which may take longer than all answers."""
        self._bar.set_postfix_str(f"read {done:,} of {total:,} tokens" if done < total else "")

    def _over(self, lab: Lab, case: Case, methods: list[Method], corpora: Corpora, rule: Selector) -> None:
        """Methods over the same corpus."""
        waiting = list(methods)
        try:
            with corpora.of(case, rule) as (corpus, seconds):
                lab.corpus = corpus
                while waiting:
                    self._one(lab, case, waiting[0], seconds)
                    waiting.pop(0)
        except Exception as error:  # the documents could not be read: every method over them failed
            for method in waiting:
                self._write(lab.task, case, method, None, 0.0, 0.0, error)

    def _one(self, lab: Lab, case: Case, method: Method, ingest: float) -> None:
        self._bar.set_description(f"{lab.task.name} {case.length} {method.label}"[:60])
        began = time.perf_counter()
        answered, failure = None, None
        try:
            answered = method.answer(lab, case)
        except Exception as error:
            failure = error
        seconds = time.perf_counter() - began
        self._write(lab.task, case, method, answered, seconds, ingest, failure)
        if failure is not None:
            failure = None  # its traceback holds the tensors of the failed answer
            gc.collect()
            torch.cuda.empty_cache()

    def _write(
        self,
        task: Task,
        case: Case,
        method: Method,
        answered: Answered | None,
        seconds: float,
        ingest: float,
        failure: Exception | None,
    ) -> None:
        row = _key(self._plan, task, case, method) | self._stamp
        row |= {"expected": " | ".join(case.answers)[:LONGEST], "seconds": number(seconds, 2)}
        if answered is None:
            row |= {"status": "failed", "note": f"{type(failure).__name__}: {failure}"[:LONGEST]}
        else:
            scores = task.score(case, answered.text)
            if answered.ranked is not None and case.gold:
                scores |= {f"recall@{k}": recall_at(answered.ranked, case.gold, k) for k in RECALL}
            row |= {name: number(value) for name, value in scores.items()}
            row |= {"status": "ok", "answer": answered.text[:LONGEST], "note": answered.note}
            row |= {"tokens": str(answered.tokens), "ingest_seconds": number(ingest, 2) if ingest else ""}
        self._rows.append(row)
        self._bar.update()


def _key(plan: Plan, task: Task, case: Case, method: Method) -> Row:
    """What a row is known by."""
    name, _, parameters = method.label.partition(":")
    return {
        "task": task.name,
        "model": Path(plan.model).name,
        "method": name,
        "parameters": parameters,
        "settings": plan.settings,
        "length": str(case.length),
        "depth": number(case.depth),
        "seed": str(case.seed),
        "case": case.name,
        "split": case.split,
    }


@contextmanager
def _engine(plan: Plan, given: Engine | None) -> Iterator[Engine]:
    if given is not None:
        yield given
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with Engine.from_pretrained(plan.model, device=plan.device, dtype=plan.dtype, **plan.config) as engine:
        yield engine


def _versions() -> str:
    return f"reattention {__version__} torch {torch.__version__} transformers {transformers.__version__}"


def measured_commit() -> str:
    """The commit of this checkout, `-dirty` where files were changed; nothing for an installed package."""
    folder = Path(__file__).parent

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=folder)

    try:
        ours = git("ls-files", "--error-unmatch", "__init__.py").returncode == 0
        return git("describe", "--always", "--dirty").stdout.strip() if ours else ""
    except FileNotFoundError:
        return ""
