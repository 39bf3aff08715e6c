"""Whole sentences stand before every document, and line breaks fill the page up."""

import pytest
from transformers import PreTrainedTokenizerFast

from reattention_core.cache.pages import PAGE
from reattention_core.config import SINK_TEXT
from reattention_core.sink import sink_ids
from reattention_core.tokens import PlainTokenizer

LONG = "one two three. Is it 3.5? " * 40


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerFast) -> PlainTokenizer:
    return PlainTokenizer(tokenizer, len(tokenizer))


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Be brief.", ["Be brief."]),
        (LONG, [LONG[:n] for n in range(len(LONG)) if LONG[n - 1 : n + 1] in (". ", "? ")]),
        ("Read this! " + "without an end " * 40, ["Read this!"]),
        (SINK_TEXT, [SINK_TEXT[: SINK_TEXT.index(" Read")], SINK_TEXT]),
    ],
    ids=["one", "many", "one and a part", "the usual one"],
)
def test_as_many_whole_sentences_as_fit(
    tokens: PlainTokenizer, tokenizer: PreTrainedTokenizerFast, text: str, whole: list[str]
) -> None:
    sink = sink_ids(tokens, text, [])
    assert len(sink) == PAGE
    shown = tokenizer.decode(sink)
    said = shown.rstrip("\n")
    assert shown != said, "no line break closes it"
    fitting = [one for one in whole if len(tokens.encode(one).ids) < PAGE]
    assert said == (fitting[-1] if fitting else text[: len(said)])


def test_a_text_without_an_end_of_a_sentence_is_cut_before_a_line_break(
    tokens: PlainTokenizer, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "the manufacturer " * 40
    sink = sink_ids(tokens, text, [tokenizer.eos_token_id])
    assert sink[0] == tokenizer.eos_token_id
    assert sink[1:-1] == tokens.encode(text).ids[: PAGE - 2]
    assert tokenizer.decode(sink[-1:]) == "\n"
