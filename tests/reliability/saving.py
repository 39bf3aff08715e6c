"""Faults while a corpus is saved, edited or removed: the process dies, the disk is full, fails or cannot be written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from reattention_core.errors import CorpusError, ReAttentionError, StorageFullError
from reattention_core.store import Store
from tests.reliability.fault import fault
from tests.reliability.operations import (
    FILL,
    OPERATIONS,
    OTHER,
    Operation,
    broken,
    finished,
    full,
    outcome,
    prepared,
    steps_of,
)
from tests.reliability.shelf import holds, load, made, save

unsynced = mock.patch.object(os, "fsync", lambda handle: None)  # which would take most of the time


@fault(
    "The process is killed",
    "SIGKILL at every step (folder, file, write, sync, rename, deletion) of a first save, a replacement, an edit, "
    "an ingest in parts "
    "and a removal: the old state or the new one, and the same again succeeds and leaves nothing over",
)
@unsynced
def killed(folder: Path) -> int:
    code = "import sys, pathlib; from tests.reliability.operations import main; main(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = {name: int(many) for name, many in (line.split(":") for line in done.stdout.split("\n") if line)}
    for operation in OPERATIONS:
        states = []
        for at in range(steps[operation.name]):
            root = folder / operation.name / str(at)
            states.append(outcome(Store(root), operation))
            finished(Store(root), root, operation)
        assert states == sorted(states, reverse=True), (
            "there is one step before which it is the old, after which the new"
        )
        assert len(set(states)) == 2
    return sum(steps.values())


@fault(
    "The disk is full",
    "from any step on that takes room, of the same five: StorageFullError, the old state or the new one, what is in memory still "
    "there; the same again succeeds once there is room",
)
@unsynced
def disk_full(folder: Path) -> int:
    return sum(_each_step(folder / operation.name, operation) for operation in OPERATIONS)


def _each_step(folder: Path, operation: Operation) -> int:
    n_steps = steps_of(folder / "whole", operation, FILL)
    for at in range(n_steps):
        root = folder / str(at)
        store = prepared(root, operation)
        try:
            with broken(at, full, FILL):
                operation.run(store)
        except StorageFullError as error:
            assert "No space left" in str(error)
        else:
            assert outcome(store, operation) == "after", "it says that it was done"
        finished(store, root, operation)
    return n_steps


@fault(
    "The disk fails once, or Ctrl-C",
    "an I/O error in any one step of the same five, KeyboardInterrupt in every second: an error of ours or the "
    "interrupt, the old state or the "
    "new one; the same again succeeds",
)
@unsynced
def fails_once(folder: Path) -> int:
    times = 0
    for operation in OPERATIONS:
        n_steps = steps_of(folder / operation.name / "whole", operation)
        for first, error in enumerate((OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt())):
            for at in range(first, n_steps, 1 + first):
                root = folder / operation.name / f"{at}-{type(error).__name__}"
                store = prepared(root, operation)
                pending: list[BaseException] = [error]

                def once(
                    name: str, function: Any, args: tuple[Any, ...], pending: list[BaseException] = pending
                ) -> Any:
                    if pending:
                        raise pending.pop()
                    return function(*args)

                try:
                    with broken(at, once):
                        operation.run(store)
                except StorageFullError:
                    assert isinstance(error, OSError)
                except CorpusError as caught:  # the edit could not open it
                    assert "try again" in str(caught)
                except KeyboardInterrupt:
                    assert isinstance(error, KeyboardInterrupt)
                finished(store, root, operation)
                times += 1
    return times


@fault("The disk has no room, seen before", "1,000 bytes free: refused with both numbers before anything is written")
def no_room(folder: Path) -> int:
    store = prepared(folder / "a" / "store", OPERATIONS[0])
    usage = shutil.disk_usage(folder)._replace(free=1000)
    with mock.patch.object(shutil, "disk_usage", lambda path: usage):
        from tests.reliability.shelf import ABOUT

        try:
            with store.draft("c", ABOUT) as draft:
                draft.check_room(1001)
        except StorageFullError as error:
            assert "1,001" in str(error)
            assert "1,000" in str(error)
        else:
            raise AssertionError
    assert store.unfinished() == []
    finished(store, folder / "a" / "store", OPERATIONS[0])
    return 1


@fault(
    "The folder of corpora cannot be used",
    "it is a file, lies below a file, or its lock is a folder: an error of ours at once for saving, opening, removing",
)
def no_folder(folder: Path) -> int:
    (folder / "file").write_text("not a folder")
    (folder / "locked" / ".lock").mkdir(parents=True)
    times = 0
    for root in (folder / "file", folder / "file" / "below", folder / "locked"):
        store = Store(root)
        for call in (
            lambda store=store: save(store, "c", made("c")),
            lambda store=store: load(store, "c"),
            lambda store=store: store.remove("c"),
        ):
            try:
                call()
            except ReAttentionError as error:
                assert str(error)
            else:
                raise AssertionError
            times += 1
    assert (folder / "file").read_text() == "not a folder"
    return times


@fault(
    "The folder cannot be written",
    "read-only, or not ours, for each of the five: what is there is opened and read, without the lock; the change is refused, and "
    "nothing was changed",
)
def read_only(folder: Path) -> int:
    times = 0
    for operation in OPERATIONS:
        for code in (errno.EROFS, errno.EACCES):
            root = folder / operation.name / str(code)
            store = prepared(root, operation)
            files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

            def refuse(name: str, function: Any, args: tuple[Any, ...], code: int = code) -> None:
                raise OSError(code, os.strerror(code))

            with broken(0, refuse):
                assert outcome(store, operation) == "before"
                try:
                    operation.run(store)
                except StorageFullError as error:
                    assert os.strerror(code) in str(error)
                else:
                    raise AssertionError
            assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files
            finished(store, root, operation)
            times += 1
    return times


@fault(
    "A store is moved",
    "copied, renamed, its files' times set to 1970 and to 2100: everything opens, is whole, and can be edited",
)
def moved(folder: Path) -> int:
    edit = next(operation for operation in OPERATIONS if operation.name == "edit")
    prepared(folder / "first", edit)
    shutil.copytree(folder / "first", folder / "copied")
    (folder / "first").rename(folder / "renamed")
    for name, seconds in (("1970", 0), ("2100", 4102444800)):
        shutil.copytree(folder / "copied", folder / name)
        for path in (folder / name).rglob("*"):
            os.utime(path, (seconds, seconds))
    roots = [folder / name for name in ("copied", "renamed", "1970", "2100")]
    for root in roots:
        assert outcome(Store(root), edit) == "before"
        Store(root).verify("c")
        finished(Store(root), root, edit)
    return len(roots)


@fault(
    "Reading fails for now",
    "too many open files, an I/O error, too many links when any file of a corpus is opened: an error that says try "
    "again, nothing is "
    "deleted, and then it opens",
)
def fails_for_now(folder: Path) -> int:
    root, times = folder / "store", 0
    store = prepared(root, OPERATIONS[1])
    whole = Path.open
    for code in (errno.EMFILE, errno.EIO, errno.ELOOP):
        for file in ("manifest.json", "pack.json", "texts.json", "pages.safetensors", "tables.safetensors"):

            def failing(path: Path, *args: Any, code: int = code, file: str = file, **kwargs: Any) -> Any:
                if path.name == file:
                    raise OSError(code, os.strerror(code), str(path))
                return whole(path, *args, **kwargs)

            with mock.patch.object(Path, "open", failing):
                try:
                    load(store, "c")
                except CorpusError as error:
                    assert "try again" in str(error)
                else:
                    raise AssertionError
            assert outcome(store, OPERATIONS[1]) == "before"
            times += 1
    assert holds(load(store, "other"), OTHER)
    return times
