"""Scores against examples worked by hand from their definitions."""

import pytest

from reattention_bench.metrics import (
    contains,
    exact_match,
    first_integer,
    normalise,
    recall_at,
    string_match_all,
    string_match_part,
    token_f1,
    wilson,
)


def test_string_match_of_ruler() -> None:
    assert string_match_all("It is 12 and 34.", ["12", "34", "56", "78"]) == 0.5
    assert string_match_all("VAR abc, DEF", ["ABC", "def"]) == 1
    assert string_match_all("The Key", ["the key"]) == 1, "letters' case does not matter"
    assert string_match_all("key-lime", ["key lime"]) == 0, "punctuation does"
    assert string_match_part("Paris it is", ["city of paris", "Paris"]) == 1
    assert string_match_part("Rome", ["city of paris", "Paris"]) == 0


def test_first_integer_of_the_passkey() -> None:
    assert first_integer(" 4711. Remember it. 12", "4711") == 1
    assert first_integer("12 or 4711", "4711") == 0
    assert first_integer("47110", "4711") == 0
    assert first_integer("none", "4711") == 0


def test_squad_normal_form() -> None:
    assert normalise("The  Cat's, a HAT; an owl!") == "cats hat owl"
    assert normalise("Anthem theatre") == "anthem theatre", "articles are whole words"


def test_squad_scores() -> None:
    assert exact_match("The Ohio River.", ["Ohio river"]) == 1
    assert exact_match("Ohio", ["Ohio river"]) == 0
    assert contains("It was on the Ohio River, I think", ["Ohio river", "x"]) == 1
    assert contains("Ohio", ["Ohio river"]) == 0, "the reference must stand in the answer, not the reverse"
    # 2 common words of 3 and 4: 2 * 2 / 7
    assert token_f1("big red dog", ["red dog runs fast"]) == pytest.approx(4 / 7)
    assert token_f1("red red", ["red"]) == pytest.approx(2 / 3), "a word counts as often as both have it"
    assert token_f1("big red dog", ["blue", "red dog"]) == pytest.approx(4 / 5), "the best of the references"
    assert token_f1("", ["the"]) == 1
    assert token_f1("", ["dog"]) == 0


def test_recall_needs_all_gold_documents() -> None:
    ranked = ["a", "b", "c", "d"]
    assert [recall_at(ranked, ["a"], k) for k in (1, 3)] == [1, 1]
    assert [recall_at(ranked, ["c"], k) for k in (1, 2, 3)] == [0, 0, 1]
    assert [recall_at(ranked, ["a", "d"], k) for k in (1, 3, 4)] == [0, 0, 1]
    assert recall_at(ranked, ["e"], 10) == 0


def test_wilson() -> None:
    """10 of 10 and 8 of 10, as textbooks have them."""
    assert wilson(1.0, 10) == (pytest.approx(0.722, abs=0.001), pytest.approx(1.0))
    assert wilson(0.8, 10) == (pytest.approx(0.490, abs=0.001), pytest.approx(0.943, abs=0.001))
    assert wilson(0.0, 0) == (0, 1)
