"""Everything that changes a folder of corpora, and every step in which it does, so that a test can break it at each."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reattention_core.edition import assembled
from reattention_core.errors import CorpusNotFoundError
from reattention_core.store import Store
from reattention_core.store.collecting import needed
from tests.reliability.shelf import ABOUT, Made, holds, load, made, packs, save

STEPS = ("mkdir", "open", "write", "fsync", "replace", "rename", "unlink", "rmdir")
FILL = ("mkdir", "open", "write", "replace", "rename")
"""Those that a full disk refuses."""

OTHER, OLD, NEW = made("other"), made("old"), made("new", (40, 20, 33))


@dataclass(frozen=True)
class Operation:
    """A change of the corpus `c`.

    Attributes:
        name: of it.
        before: what `c` is before; None if it is not there.
        after: what it is afterwards.
        run: changes it.
    """

    name: str
    before: Made | None
    after: Made | None
    run: Callable[[Store], Any]


def _extended() -> Made:
    extra = made("extra", (50,))
    parts = [(d.document, d, OLD.pages) for d in OLD.documents]
    return Made(*assembled(OLD.pages, [*parts, *((d.document, d, extra.pages) for d in extra.documents)]))


def _edit(store: Store) -> None:
    opened, extra = load(store, "c"), made("extra", (50,))
    parts = [(d.document, d, opened.pages) for d in opened.documents]
    parts += [(d.document, d, extra.pages) for d in extra.documents]
    save(store, "c", Made(*assembled(opened.pages, parts)), base=opened.manifest.generation)


def _ingest(store: Store) -> None:
    """In three parts, each made durable, as an ingest does; parts that are there already are not written again."""
    with store.draft("c", ABOUT, replace=True) as draft:
        documents = list(NEW.documents)
        found = draft.find([d.document for d in documents])
        parts = []
        for document, known in zip(documents, found, strict=True):
            one, pages = known or (draft.write(NEW.pages, [document])[0], NEW.pages)
            parts.append((document.document, one, pages))
        draft.publish(*assembled(NEW.pages, parts))


OPERATIONS = [
    Operation("first save", None, NEW, lambda store: save(store, "c", NEW)),
    Operation("replacement", OLD, NEW, lambda store: save(store, "c", NEW, replace=True)),
    Operation("edit", OLD, _extended(), _edit),
    Operation("ingest in parts", None, NEW, _ingest),
    Operation("removal", OLD, None, lambda store: store.remove("c")),
]


def prepared(root: Path, operation: Operation) -> Store:
    """A new store in which the operation can run."""
    template = root.parent / "template"
    if not template.exists():
        store = Store(template)
        save(store, "other", OTHER)
        if operation.before is not None:
            save(store, "c", operation.before)
    return Store(shutil.copytree(template, root))


@contextmanager
def broken(
    at: int, how: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any], kinds: tuple[str, ...] = STEPS
) -> Iterator[list[str]]:
    """Every step from number `at` on is done by `how` instead; gives the names of the steps as they are taken."""
    steps: list[str] = []
    whole = {name: getattr(os, name) for name in kinds}

    def step(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return whole[name](*args, **kwargs)
            steps.append(name)
            return whole[name](*args, **kwargs) if len(steps) - 1 < at else how(name, whole[name], args)

        return call

    try:
        for name in kinds:
            setattr(os, name, step(name))
        yield steps
    finally:
        for name, function in whole.items():
            setattr(os, name, function)


def steps_of(root: Path, operation: Operation, kinds: tuple[str, ...] = STEPS) -> int:
    """How many steps an operation takes."""
    store = prepared(root, operation)
    with broken(10**9, lambda *_: None, kinds) as steps:
        operation.run(store)
    return len(steps)


def kill(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """End this process, in the middle of a write if it is one."""
    if name == "write":
        function(args[0], memoryview(args[1])[: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def full(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The disk has no room; a write may have found some for its first half."""
    if name == "write":
        function(args[0], memoryview(args[1])[: len(args[1]) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def outcome(store: Store, operation: Operation) -> str:
    """Which of the two states the corpus is in: never another, and the other corpus is as it was."""
    assert holds(load(store, "other"), OTHER)
    try:
        found = load(store, "c")
    except CorpusNotFoundError:
        assert None in (operation.before, operation.after)
        return "before" if operation.before is None else "after"
    if operation.before is not None and holds(found, operation.before):
        return "before"
    assert operation.after is not None
    assert holds(found, operation.after)
    return "after"


def finished(store: Store, root: Path, operation: Operation) -> None:
    """The operation, done again after it was broken off, succeeds, and leaves no more on disk than is needed."""
    if outcome(store, operation) == "before":
        operation.run(store)
    elif operation.after is not None:
        save(store, "c", operation.after, replace=True)
    if "c" not in store.names():
        save(store, "tidied", OTHER)  # whoever publishes next tidies up
    assert outcome(store, operation) == "after"
    assert store.unfinished() == []
    assert {path.name for path in packs(root)} == needed(root)


def main(root: Path) -> None:
    """In a process of its own: die in every step of every operation; prints how many there were."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # a process that dies takes nothing along that a sync would have saved
    for operation in OPERATIONS:
        n_steps = steps_of(root / operation.name / "whole", operation)
        for at in range(n_steps):
            store = prepared(root / operation.name / str(at), operation)
            child = os.fork()
            if not child:
                with broken(at, kill):
                    operation.run(store)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), (operation.name, at, status)
            assert os.WTERMSIG(status) == signal.SIGKILL, status
        sys.stdout.write(f"{operation.name}:{n_steps}\n")
