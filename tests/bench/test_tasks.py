"""Cases as they are made: lengths, depths, needles and answers; no model."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reattention_bench.case import Group, Size, split_of
from reattention_bench.haystack import NOISE, cut, cut_text, hide, sentences
from reattention_bench.tasks import TASKS, Task
from reattention_core.errors import InvalidRequestError
from reattention_core.tokens import PlainTokenizer

Count = Callable[[str], int]
SIZE = Size(lengths=(1500,), draws=3, splits=("tune", "report"), haystack="noise")
GENERATED = [
    "passkey",
    "niah_single",
    "niah_multikey",
    "niah_multivalue",
    "niah_multiquery",
    "variable_tracking",
    "key_value",
]


def made(name: str, tokens: PlainTokenizer, size: Size = SIZE) -> tuple[Task, Group]:
    task = TASKS[name]()
    (group,) = task.groups(size, tokens)
    return task, group


def text_of(group: Group, case_number: int) -> str:
    return "\n\n".join(document.text for document in group.of(group.cases[case_number]))


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("length", [400, 1000, 2600])
def test_length_in_tokens(name: str, length: int, tokens: PlainTokenizer) -> None:
    """Never more than asked, and less by at most three hundredths and a line."""
    _, group = made(name, tokens, replace(SIZE, lengths=(length,)))
    for case in group.cases:
        n = sum(len(document.ids) for document in tokens.encode_documents(group.of(case)))
        assert 0.97 * length - 120 <= n <= length


@pytest.mark.parametrize("name", GENERATED)
def test_answers_stand_in_the_needles_and_nowhere_else(name: str, tokens: PlainTokenizer) -> None:
    task, group = made(name, tokens)
    for number, case in enumerate(group.cases):
        text = text_of(group, number)
        unchanged = "\n\n".join(document.text for document in group.documents)
        for answer in case.answers:
            uses = {"passkey": 2, "variable_tracking": 2}.get(
                name, 1
            )  # a variable is set, and passed on unless it is the last
            if name == "variable_tracking" and answer == case.answers[-1]:
                uses = 1
            assert len(re.findall(rf"\b{answer}\b", text)) == uses
            assert answer not in case.question
            if name != "key_value":
                assert not re.search(rf"\b{answer}\b", unchanged)
        holders = {document.id for document in group.of(case) if any(a in document.text for a in case.answers)}
        assert holders == case.gold
        assert task.score(case, "")["score"] == 0
        assert task.score(case, " and ".join(case.answers))["score"] == 1


@pytest.mark.parametrize("name", GENERATED)
def test_draws_are_repeatable_and_differ(name: str, tokens: PlainTokenizer) -> None:
    _, group = made(name, tokens)
    _, again = made(name, tokens)
    assert group == again
    assert len({case.answers for case in group.cases}) == len(group.cases)


@pytest.mark.parametrize("name", GENERATED)
def test_halves_share_no_seed(name: str, tokens: PlainTokenizer) -> None:
    _, group = made(name, tokens)
    halves = {half: {case.seed for case in group.cases if case.split == half} for half in ("tune", "report")}
    assert [len(seeds) for seeds in halves.values()] == [3, 3]
    assert not halves["tune"] & halves["report"]


@pytest.mark.parametrize("name", ["passkey", "niah_single", "niah_multikey", "key_value"])
def test_the_needle_lies_at_its_depth(name: str, tokens: PlainTokenizer) -> None:
    _, group = made(name, tokens, replace(SIZE, depths=(0.0, 0.3, 0.7, 1.0), draws=1, lengths=(4000,)))
    for number, case in enumerate(group.cases):
        text = text_of(group, number)
        assert case.depth is not None
        assert abs(text.index(case.answers[0]) / len(text) - case.depth) < 0.08


def test_several_values_belong_to_one_key(tokens: PlainTokenizer) -> None:
    _, group = made("niah_multivalue", tokens)
    case = group.cases[0]
    (name,) = set(re.findall(r"numbers for (\S+) is: ", text_of(group, 0)))
    assert len(case.answers) == 4
    assert case.question.count(name) == 2
    assert case.question.endswith("are")


def test_several_keys_one_asked(tokens: PlainTokenizer) -> None:
    _, group = made("niah_multikey", tokens)
    found = dict(re.findall(r"numbers for (\S+) is: (\d+)", text_of(group, 0)))
    assert len(found) == 4
    asked = [name for name in found if name in group.cases[0].question]
    assert [found[name] for name in asked] == list(group.cases[0].answers)


def test_the_chain_of_variables(tokens: PlainTokenizer) -> None:
    """Every variable holds the number when the assignments are carried out in the order they stand."""
    _, group = made("variable_tracking", tokens)
    for number, case in enumerate(group.cases):
        memory: dict[str, str] = {}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text_of(group, number)):
            memory[name] = memory.get(source, source)
        assert set(memory) == set(case.answers)
        assert set(memory.values()) == {re.findall(r"value (\d+)", case.query)[0]}


def test_a_needle_displaces_text(count: Count) -> None:
    documents = cut(sentences("noise", Path()), 2000, count)
    sizes = [count("".join(part).strip() + "\n\n") for part in documents]
    changes = hide(documents, [(0.1, "Here is one."), (0.1, "Here is two."), (0.9, "Here is three.")], count)
    assert "one. Here is two." in changes[0].text
    for number, document in changes.items():
        assert count(document.text + "\n\n") <= sizes[number]
        assert sum(part in document.text for part in NOISE) == len(NOISE)


def test_needles_that_do_not_fit(tokens: PlainTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"needles of one draw take \d+ tokens .* larger --length"):
        made("niah_multivalue", tokens, replace(SIZE, lengths=(100,)))
    with pytest.raises(InvalidRequestError, match="cannot hold one key"):
        made("key_value", tokens, replace(SIZE, lengths=(64,)))


def test_text_haystack_is_the_text(data: Path, count: Count) -> None:
    parts = cut(sentences("essays", data), 1500, count)
    text = (data / "essays.txt").read_text()
    assert text.startswith("".join("".join(part) for part in parts))
    joined = "".join(document.text for document in cut_text(text, 1000, count))
    assert joined.replace(" ", "") == text.replace(" ", "")


def test_missing_haystack(tokens: PlainTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"--data, or --haystack noise"):
        made("niah_single", tokens, replace(SIZE, haystack=None, data=tmp_path))
    with pytest.raises(InvalidRequestError, match=r"nowhere\.txt"):
        made("niah_single", tokens, replace(SIZE, haystack="nowhere.txt"))


# corpora


def test_questions_of_a_corpus(tokens: PlainTokenizer, data: Path) -> None:
    task, group = made("xquad_en", tokens, Size(splits=("tune", "report"), data=data))
    assert len(group.documents) == len(group.cases) == 6
    by_name = {case.name: case for case in group.cases}
    assert by_name["q1"].gold == {"1"}
    assert all(case.split == split_of(case.name) for case in group.cases)
    assert {case.split for case in group.cases} == {"tune", "report"}
    scores = task.score(by_name["q1"], "In 1742, I think.")
    assert (scores["score"], scores["em"]) == (1, 0)
    assert scores["f1"] == pytest.approx(2 / 5)
    assert not by_name["q3"].answered, "'the bridge' stands in the question"
    assert task.score(by_name["q3"], "the bridge") == {}
    assert group.documents[1].title == "Mills"
    _, bare = made("xquad_en", tokens, Size(data=data, titles=False))
    assert bare.documents[1].title == ""
    assert bare.cases[0].length < group.cases[0].length


def test_fewer_questions_are_drawn_the_same_way(tokens: PlainTokenizer, data: Path) -> None:
    _, some = made("xquad_en", tokens, Size(data=data, draws=1, splits=("tune", "report")))
    _, again = made("xquad_en", tokens, Size(data=data, draws=1, splits=("tune", "report")))
    assert some == again
    assert [case.split for case in some.cases] == ["tune", "report"]


def test_a_corpus_has_its_own_length(tokens: PlainTokenizer, data: Path) -> None:
    with pytest.raises(InvalidRequestError, match="leave out --length"):
        made("xquad_en", tokens, Size(lengths=(1000,), data=data))
    with pytest.raises(InvalidRequestError, match=r"hotpot200\.corpus\.jsonl.*--data"):
        made("hotpot200", tokens, Size(data=data))


# perplexity


def test_perplexity_scores_the_same_words_at_every_length(tokens: PlainTokenizer, data: Path) -> None:
    task, group = made("perplexity", tokens, Size(lengths=(600, 2000), draws=2, data=data))
    for short, long in zip(group.cases[:2], group.cases[2:], strict=True):
        assert (len(short.ids), len(long.ids)) == (600, 2000)
        assert list(long.ids[-600:]) == list(short.ids)
    assert task.score(group.cases[0], "0.0") == {"score": 1.0}
    with pytest.raises(InvalidRequestError, match="larger --length"):
        made("perplexity", tokens, Size(lengths=(512,), data=data))
    with pytest.raises(InvalidRequestError, match="longer text or less"):
        made("perplexity", tokens, Size(lengths=(10_000_000,), data=data))
