"""Text never becomes a control token, and spans say which characters a token is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from reattention_core.documents import Document
from reattention_core.errors import EmptyPromptError, InvalidRequestError, UnsupportedModelError
from reattention_core.tokens import NO_SPAN, PlainTokenizer
from tests.core.tiny_tokenizers import byte_level_bpe, unigram, word_level, wrap

BPE = byte_level_bpe()
PLAIN = PlainTokenizer(BPE, vocab_rows=len(BPE))
UNIGRAM = PlainTokenizer(unigram(), vocab_rows=512)

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
# Any text, mixed with what an attacker would write.
HOSTILE = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([*CONTROL, "</s>", "<unk>", "      ", "\n", "<|im_", "end|>", "▁", "🤗"]),
    ),
    max_size=8,
).map("".join)


@given(HOSTILE)
def test_bytes_round_trip_without_control_tokens(text: str) -> None:
    ids, _ = PLAIN.encode(text)
    assert PLAIN.control_ids.isdisjoint(ids)
    assert BPE.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("plain", [PLAIN, UNIGRAM], ids=["bpe", "unigram"])
@given(text=HOSTILE)
def test_spans_cover_the_text_in_order(plain: PlainTokenizer, text: str) -> None:
    ids, spans = plain.encode(text)
    assert plain.control_ids.isdisjoint(ids)
    assert len(ids) == len(spans)
    assert spans == sorted(spans, key=lambda span: span[0])
    assert [end for _, end in spans] == sorted(end for _, end in spans)
    covered = {i for start, end in spans for i in range(start, end)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered <= set(range(len(text)))


def test_every_added_token_of_every_kind() -> None:
    assert {BPE.decode(i) for i in PLAIN.control_ids} == set(CONTROL)
    for tokenizer in (BPE, unigram(), word_level()):
        plain = PlainTokenizer(tokenizer, vocab_rows=512)
        for token in tokenizer.added_tokens_decoder.values():
            for text in (token.content, f" the {token.content} fox", token.content * 3):
                assert plain.control_ids.isdisjoint(plain.encode(text).ids)


def test_pieces_of_the_vocabulary_that_are_control_tokens() -> None:
    tokenizer = unigram()
    assert tokenizer("a</s>b", add_special_tokens=False).input_ids == [2, 5, 1, 2, 6]
    ids, spans = UNIGRAM.encode("a</s>b")
    assert tokenizer.decode(ids) == "a</s>b"
    assert spans[-5:] == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    # A vocabulary of whole words has nothing else to write it with.
    words = PlainTokenizer(word_level(), vocab_rows=5)
    assert words.encode("the </s> fox [UNK] cat").ids == [2, 0, 3, 0, 0]


def test_ordinary_text_is_encoded_as_the_model_learnt_it() -> None:
    text = "What is the      warranty\n\nof the device? 🤗 é"
    expected = BPE(text, add_special_tokens=False, return_offsets_mapping=True)
    assert PLAIN.encode(text) == (expected.input_ids, expected.offset_mapping)
    # The run of spaces keeps its id although control tokens before it are out of reach.
    assert BPE.convert_tokens_to_ids("      ") in PLAIN.encode("a      b").ids


def test_neither_special_tokens_nor_limits_of_the_original() -> None:
    tokenizer = byte_level_bpe()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [383], "tokens": ["<|im_start|>"]}},
    }
    backend = Tokenizer.from_str(json.dumps(state))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    wrapped = wrap(backend, eos_token="<|im_end|>")
    text = "The quick brown fox jumps over it"
    assert PlainTokenizer(wrapped, vocab_rows=385).encode(text) == PLAIN.encode(text)


def test_unknown_token_that_is_also_the_end_token_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"<end>": 0, "fox": 1}, "<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PlainTokenizer(wrap(backend, unk_token="<end>", eos_token="<end>"), vocab_rows=2)
    assert plain.encode("fox fox").ids == [1, 1]
    with pytest.raises(InvalidRequestError, match=r"'cat' at character 4 .* control token 0"):
        plain.encode("fox cat")


def test_characters_of_several_tokens_share_their_span() -> None:
    ids, spans = PLAIN.encode("a🤗")
    assert spans == [(0, 1)] + [(1, 2)] * (len(ids) - 1)
    assert len(ids) == 5


def test_document_spans() -> None:
    document = Document(title="the fox", text="What is <|im_end|>?\n")
    tokenized = PLAIN.encode_documents([document])[0]
    assert tokenized.document is document
    assert BPE.decode(tokenized.ids) == "the fox\nWhat is <|im_end|>?\n\n\n"
    spans = [tuple(span) for span in tokenized.spans.tolist()]
    inside = [i for i, span in enumerate(spans) if span != NO_SPAN]
    assert "".join(document.text[slice(*spans[i])] for i in inside) == document.text
    assert inside == list(range(inside[0], inside[-1] + 1))
    assert BPE.decode(tokenized.ids[: inside[0]]) == "the fox\n"
    untitled = PLAIN.encode_documents([Document(text="fox")])[0].spans.tolist()
    assert untitled[0][0] == 0
    assert untitled[-1] == [*NO_SPAN]


@given(st.sampled_from(["", "the fox", "<|im_end|>", "\n"]), HOSTILE.filter(str.strip))
def test_document_spans_stay_inside_the_text(title: str, text: str) -> None:
    _, ids, spans = PLAIN.encode_documents([Document(title=title, text=text)])[0]
    assert PLAIN.control_ids.isdisjoint(ids)
    covered = {i for span in spans.tolist() if span != [*NO_SPAN] for i in range(*span)}
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("text", ["", " \n"])
def test_document_without_text(text: str) -> None:
    with pytest.raises(EmptyPromptError, match="gives no token"):
        PLAIN.encode_documents([Document(title="a title", text=text)])[0]


def test_ids_beyond_the_embedding() -> None:
    small = PlainTokenizer(BPE, vocab_rows=200)
    with pytest.raises(InvalidRequestError, match="beyond the model's 200 embedding rows"):
        small.encode("the warranty")


@pytest.mark.parametrize("text", [None, 3, b"x", ["x"], "\ud83d"])
def test_what_is_not_text(text: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected text|lone surrogate"):
        PLAIN.encode(text)  # type: ignore[arg-type]


def test_slow_tokenizer() -> None:
    class Slow:
        pass

    with pytest.raises(UnsupportedModelError, match="Slow is a slow tokenizer"):
        PlainTokenizer(Slow(), vocab_rows=9)  # type: ignore[arg-type]
