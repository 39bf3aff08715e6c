"""Faults of several at once: two writers, a reader during a replacement or removal, an ingest beside others that tidy up."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reattention_core.errors import CorpusExistsError, CorpusNotFoundError
from reattention_core.store import Store
from tests.reliability.fault import fault
from tests.reliability.shelf import ABOUT, holds, load, made, packs, save


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads that begin together; what each returned, or the error it raised."""
    ready, found = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        ready.wait()
        try:
            found[number] = call()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=given) for given in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@fault(
    "Two save the same corpus at once", "equal documents: both succeed, with one and the same generation, on disk once"
)
def same_twice(folder: Path) -> int:
    for number in range(10):
        root, what = folder / str(number), made("c")
        one, two = at_once(*[lambda root=root, what=what: save(Store(root), "c", what)] * 2)
        assert one.to_json() == two.to_json() == Store(root).manifest("c").to_json()
        assert one.generation == 1
        assert holds(load(Store(root), "c"), what)
        Store(root).remove("c")
        assert packs(root) == []
    return 10


@fault("Two save different corpora under one name at once", "one is saved whole, the other is told CorpusExistsError")
def different_twice(folder: Path) -> int:
    for number in range(10):
        root, several = folder / str(number), [made("a"), made("b")]
        found = at_once(*(lambda root=root, what=what: save(Store(root), "c", what) for what in several))
        errors = [isinstance(one, CorpusExistsError) for one in found]
        assert sorted(errors) == [False, True], found
        assert holds(load(Store(root), "c"), several[errors.index(False)])
    return 10


@fault(
    "Two edit the same generation at once",
    "one edit is saved, the other is told to open it again; none is lost silently",
)
def two_edits(folder: Path) -> int:
    for number in range(10):
        root = folder / str(number)
        first = save(Store(root), "c", made("old"))
        several = [made("a"), made("b")]
        found = at_once(
            *(
                lambda root=root, what=what, base=first.generation: save(Store(root), "c", what, base=base)
                for what in several
            )
        )
        errors = [isinstance(one, CorpusExistsError) for one in found]
        assert sorted(errors) == [False, True], found
        assert "open it again" in str(found[errors.index(True)])
        assert holds(load(Store(root), "c"), several[errors.index(False)])
        try:
            save(Store(root), "gone", made("a"), base=1)
        except CorpusNotFoundError as error:
            assert "removed since" in str(error)
        else:
            raise AssertionError
    return 10


@fault(
    "A corpus is replaced and removed while it is read",
    "a reader that opens and reads all pages over and over: always one of the whole states; one that had opened it before reads "
    "its own state to the end",
)
def replaced(folder: Path) -> int:
    states = [made(f"state {n}") for n in range(20)]
    store, done, seen = Store(folder), threading.Event(), []
    save(store, "c", states[0])
    before = load(store, "c")

    def write() -> None:
        try:
            for state in states[1:]:
                save(store, "c", state, replace=True)
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            found = load(Store(folder), "c")
            seen.append(next(n for n, state in enumerate(states) if holds(found, state)))

    errors = at_once(write, read, read)
    assert errors == [None] * 3, errors
    assert seen
    store.remove("c")
    assert packs(folder) == []
    assert holds(before, states[0])
    return len(states)


@fault(
    "Others publish and remove while an ingest is under way",
    "nothing that it has made durable is tidied away, and what nobody needs is; it publishes, or is removed, whole",
)
def beside(folder: Path) -> int:
    store, what = Store(folder), made("c", (40, 20, 33))
    with store.draft("c", ABOUT) as draft:
        documents = list(what.documents)
        for number in range(3):
            documents[number] = draft.write(what.pages, [documents[number]])[0]
            save(store, "other", made(f"other {number}"), replace=True)
            assert len(packs(folder)) == number + 2
            store.remove("other")
            assert len(packs(folder)) == number + 1
        draft.publish(what.pages, documents)
    assert holds(load(store, "c"), what)
    return 3
