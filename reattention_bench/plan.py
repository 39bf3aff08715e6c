"""What a run will measure, checked before any model is loaded; knows no model beyond its tokenizer.

All cases are made here, with the model's tokenizer alone, so that a length below the needle, missing data or an unknown
name is told at once.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reattention_bench.case import Group, Size
from reattention_bench.corpora import Mode
from reattention_bench.methods import NAMES, Method, method
from reattention_bench.methods.base import parse, write
from reattention_bench.tasks import TASKS, Task
from reattention_core.config import Config, checked
from reattention_core.errors import InvalidRequestError
from reattention_core.models.loading import BUNDLED, load_tokenizer
from reattention_core.tokens import PlainTokenizer

CPU_CORPUS = 350_000
"""Tokens that a CPU reads in about a quarter of an hour."""

CPU_QUADRATIC = 20_000
"""Tokens over which full attention takes minutes for one answer on a CPU."""

ALL_METHODS = (
    *(name for name in NAMES if name not in ("bm25", "embeddings")),
    *(f"{retriever}:k={k}" for retriever in ("bm25", "embeddings") for k in (1, 3, 5)),
)

QUICK: dict[str, Any] = {
    "tasks": ("passkey", "niah_single", "niah_multikey"),
    "methods": ("consensus", "sink-local:window=512", "full", "closed", "bm25:k=1"),
    "lengths": (1500,),
    "draws": 2,
    "haystack": "noise",
}
"""What a CPU does in about two minutes and without data."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        tasks: what is asked.
        methods: how it is answered; those that do not apply to a task were refused or, by default, left out.
        groups: the cases of every task.
        model: as for `Engine.from_pretrained`.
        device: as there.
        dtype: as there.
        mode: of ingest.
        config: fields of `Config` for the engine.
        settings: whatever was set, as text: part of what a row is known by.
        commit: what is measured, where git cannot tell.
    """

    tasks: Sequence[Task]
    methods: Sequence[Method]
    groups: dict[str, list[Group]]
    model: str = BUNDLED
    device: str | None = None
    dtype: str = "auto"
    mode: Mode = "independent"
    config: dict[str, Any] = field(default_factory=dict)
    settings: str = ""
    commit: str = ""

    def of(self, task: Task) -> list[Method]:
        """The methods that apply to a task."""
        return [m for m in self.methods if (m.reads if task.reads else m.asks)]


def prepare(
    tasks: Sequence[str],
    methods: Sequence[str],
    size: Size,
    model: str = BUNDLED,
    device: str | None = None,
    dtype: str = "auto",
    mode: Mode = "independent",
    settings: Sequence[str] = (),
    commit: str = "",
) -> Plan:
    """Check everything and make all cases.

    Args:
        tasks: names.
        methods: names with parameters; all where empty.
        size: lengths, depths, draws, halves, data.
        model: see `Plan`.
        device: see `Plan`.
        dtype: see `Plan`.
        mode: see `Plan`.
        settings: `field=value` of `Config`.
        commit: see `Plan`.

    Raises:
        InvalidRequestError: something cannot be measured as asked; the message says what to change.
        ImportError: a method needs a package that is not installed.
    """
    if not tasks:
        raise InvalidRequestError(f"name a task: {', '.join(TASKS)}")
    chosen = [_task(name) for name in dict.fromkeys(tasks)]
    _check_size(size)
    config = parse("settings:" + ",".join(settings))[1] if settings else {}
    checked(Config, config)
    ways = [method(label) for label in dict.fromkeys(methods or ALL_METHODS)]
    for task in chosen:
        unfit = [way.label for way in ways if not (way.reads if task.reads else way.asks)]
        if methods and unfit:
            raise InvalidRequestError(
                f"{task.name} cannot be measured with {', '.join(unfit)}: leave those out or run them apart"
            )
    # Rows beyond any vocabulary: the engine checks ids against the real model.
    tokens = PlainTokenizer(load_tokenizer(model), sys.maxsize)
    groups = {task.name: task.groups(size, tokens) for task in chosen}
    about: dict[str, Any] = {"mode": mode} if mode != "independent" else {}
    about |= {"dtype": dtype} if dtype != "auto" else {}
    about |= {"haystack": Path(size.haystack).stem} if size.haystack else {}
    about |= {"titles": "no"} if not size.titles else {}
    plan = Plan(chosen, ways, groups, model, device, dtype, mode, config, write({**about, **config}), commit)
    _check_device(plan)
    return plan


def _task(name: str) -> Task:
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidRequestError(f"unknown task {name!r}{hint} (there are: {', '.join(TASKS)})")
    return TASKS[name]()


def _check_size(size: Size) -> None:
    if any(length < 64 for length in size.lengths):
        raise InvalidRequestError(f"a length is at least 64 tokens, got {min(size.lengths)}")
    if any(not 0 <= depth <= 1 for depth in size.depths):
        raise InvalidRequestError(f"a depth runs from 0 (the beginning) to 1 (the end), got {list(size.depths)}")
    if size.draws is not None and size.draws < 1:
        raise InvalidRequestError(f"at least one draw is needed, got {size.draws}")


def _check_device(plan: Plan) -> None:
    """Refuse what would take hours without a GPU."""
    if plan.device not in (None, "cpu") or (plan.device is None and torch.cuda.is_available()):
        return
    for task in plan.tasks:
        longest = max((case.length for group in plan.groups[task.name] for case in group.cases), default=0)
        slow = [m.label for m in plan.of(task) if longest > (CPU_QUADRATIC if m.quadratic else CPU_CORPUS)]
        if slow:
            raise InvalidRequestError(
                f"{task.name} at {longest:,} tokens with {', '.join(slow)} needs a GPU, and there is none here (a CPU does "
                f"{CPU_QUADRATIC:,} tokens with full attention, {CPU_CORPUS:,} otherwise): lower --length, leave those "
                "methods out or pass --device cuda on a machine that has one"
            )
