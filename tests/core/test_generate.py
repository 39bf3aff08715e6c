"""Text as it is drawn: stop strings, whole characters, cancellation and errors on their way out of the worker thread."""

import threading
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Consensus, Corpus, Engine
from reattention_core.errors import CancelledError, UnsupportedModelError
from reattention_core.generate import TextStream
from reattention_core.positions import Rotation
from reattention_core.tokens import PlainTokenizer
from tests.core.tiny_tokenizers import byte_level_bpe

BPE = byte_level_bpe()
PLAIN = PlainTokenizer(BPE, vocab_rows=len(BPE))

PIECES = ["a", "b", "ab", " ", "\n", "\n\n", ":\n\n", "\nQuestion:", "😀", "👩‍👩‍👧", "漢字", "é", "</s>"]
# Few letters, so that stop strings do occur, and any text at all besides.
TEXT = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=3),
    ),
    max_size=12,
).map("".join)
STOPS = st.lists(
    st.one_of(
        st.sampled_from([*PIECES, "aba", "b\n", "b😀", "字é", "\u200d"]), st.text("ab \n", min_size=1, max_size=4)
    ),
    max_size=4,
    unique=True,
)
CUTS = st.sets(st.integers(1, 60))

QUESTION = "What is the warranty period?"
DOCUMENTS = [f"The warranty of device {i} lasts {i} years. " * 4 for i in range(4)]
LONG = "The quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest(DOCUMENTS, progress=False)


@pytest.fixture
def first_drawn(corpus: Corpus) -> int:
    """The token that an answer begins with."""
    drawn: list[int] = []
    model = corpus.engine.attachment.model
    hook = model.register_forward_hook(lambda m, a, output: drawn.append(int(output.logits[0, -1].argmax())))
    corpus.ask(QUESTION, max_new_tokens=1, stop=())
    hook.remove()
    return drawn[-1]


@pytest.fixture
def forwards(engine: Engine) -> list[int]:
    """Tokens of every forward pass that has ended, in order; while an answer is written, one pass is one token."""
    widths: list[int] = []
    engine.attachment.model.base_model.register_forward_hook(lambda m, a, output: widths.append(output[0].shape[1]))
    return widths


def split_into_tokens(text: str, cuts: set[int]) -> list[int]:
    """Each part is encoded by itself, so a cut keeps two letters from becoming one token."""
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [i for start, stop in pairwise(places) for i in PLAIN.encode(text[start:stop]).ids]


def streamed(ids: list[int], stop: list[str], trim: bool = False) -> tuple[list[str], TextStream]:
    """Pieces that a stream emits when `generate` hands it a prompt and then one token after the other."""
    pieces: list[str] = []
    stream = TextStream(BPE, tuple(stop), pieces.append, lambda: False, trim)
    stream.put(torch.tensor([[5, 6, 7]]))
    for token in ids:
        stream.put(torch.tensor([token]))
        if stream(torch.tensor([[token]]), None).item():
            break
    stream.end()
    return pieces, stream


def cut(text: str, stop: list[str], trim: bool = False) -> str:
    """The text before the first stop string; trimmed, blank lines behind a line that announces something new are none."""
    found = [
        at for s in stop for at in range(len(text)) if text.startswith(s, at) and not (trim and announced(text, s, at))
    ]
    return text[: min(found, default=len(text))]


def announced(text: str, stop: str, at: int) -> bool:
    """Whether a blank line at this place follows a colon, and what stands before it in its line was said for the first time."""
    before = text[:at].rstrip()
    line = before.split("\n")[-1]
    return stop == "\n\n" and before.endswith(":") and text[:at].find(line) == len(before) - len(line)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reattention-generate"]


@settings(deadline=None)
@given(text=TEXT, stop=STOPS, cuts=CUTS)
def test_pieces_are_the_text_up_to_the_first_stop_string_however_it_is_cut_into_tokens(
    text: str, stop: list[str], cuts: set[int]
) -> None:
    # Of two stop strings one inside the other, it depends on the tokens which one is complete first.
    assume(not any(a in b for a in stop for b in stop if a != b))
    pieces, stream = streamed(split_into_tokens(text, cuts), stop)
    assert "".join(pieces) == cut(text, stop)
    assert stream.stopped == any(s in text for s in stop)
    assert not any("\ufffd" in piece or piece == "" for piece in pieces)


@settings(deadline=None)
@given(text=TEXT, stop=STOPS, cuts=CUTS)
def test_trimmed_pieces_have_no_white_space_at_either_end(text: str, stop: list[str], cuts: set[int]) -> None:
    assume(not any(a in b for a in stop for b in stop if a != b))
    pieces, _ = streamed(split_into_tokens(text, cuts), stop, trim=True)
    assert "".join(pieces) == cut(text.lstrip(), stop, trim=True).rstrip()
    assert not any("\ufffd" in piece or piece == "" for piece in pieces)


@settings(deadline=None)
@given(text=TEXT, stop=STOPS, cuts=CUTS, trim=st.booleans())
def test_no_stop_string_is_emitted_even_where_one_lies_inside_another(
    text: str, stop: list[str], cuts: set[int], trim: bool
) -> None:
    pieces, stream = streamed(split_into_tokens(text, cuts), stop, trim)
    joined, whole = "".join(pieces), text.lstrip() if trim else text
    assert cut(joined, stop, trim) == joined
    assert whole.startswith(joined)
    assert stream.stopped == (cut(whole, stop, trim) != whole)


def test_a_piece_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    pieces, _ = streamed(split_into_tokens("aab.", {1, 2, 3}), ["abc"])
    assert pieces == ["a", "ab."]


@pytest.mark.parametrize("cuts", [set(), set(range(1, 60))])
def test_a_blank_line_behind_a_colon_does_not_end_an_answer(cuts: set[int]) -> None:
    ids = split_into_tokens("The answer is:\n\n\nParis.\n\nMore.", cuts)
    assert "".join(streamed(ids, ["\n\n"], trim=True)[0]) == "The answer is:\n\n\nParis."
    assert "".join(streamed(ids, ["\n\n"])[0]) == "The answer is:"
    assert "".join(streamed(ids, ["\n"], trim=True)[0]) == "The answer is:"
    again = split_into_tokens("The answer is:\n\n" * 3, cuts)
    assert "".join(streamed(again, ["\n\n"], trim=True)[0]) == "The answer is:\n\nThe answer is:"


def test_a_character_that_never_ends_is_replaced_once_and_only_at_the_end() -> None:
    ids = PLAIN.encode("a😀b漢").ids
    pieces, _ = streamed(ids[:-1], [])
    assert "".join(pieces) == "a😀b\ufffd"
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_a_replacement_character_that_the_model_wrote_itself_is_kept() -> None:
    pieces, _ = streamed(PLAIN.encode("a\ufffdb\ufffd").ids, [])
    assert "".join(pieces) == "a\ufffdb\ufffd"


def test_control_tokens_are_no_text() -> None:
    ids = [*PLAIN.encode("x漢").ids[:-1], BPE.eos_token_id, *PLAIN.encode("x漢").ids[-1:]]
    pieces, _ = streamed(ids, [])
    assert pieces == ["x", "漢"]


def test_a_stream_joined_is_the_answer_and_what_ask_gives(corpus: Corpus) -> None:
    stream = corpus.stream(QUESTION, max_new_tokens=24)
    pieces = list(stream)
    asked = corpus.ask(QUESTION, max_new_tokens=24)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.answer.text == asked.text
    assert stream.answer.sources == asked.sources
    assert list(stream) == []


def test_the_answer_is_not_there_before_the_last_piece(corpus: Corpus) -> None:
    stream = corpus.stream(QUESTION)
    next(stream)
    with pytest.raises(RuntimeError, match="iterate to the end"):
        _ = stream.answer
    stream.close()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_no_more_than_max_new_tokens_are_drawn(corpus: Corpus, n: int) -> None:
    answer = corpus.ask(QUESTION, max_new_tokens=n)
    assert answer.usage.completion_tokens == n
    assert answer.finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    whole = engine.generate("hello", max_new_tokens=32).text
    at = next(i for i in range(4, len(whole)) if whole[i : i + 2].isascii() and whole.find(whole[i : i + 2]) == i)
    stop = whole[at : at + 2]
    stream = engine.stream("hello", max_new_tokens=32, stop=[stop])
    assert "".join(stream) == stream.answer.text == whole[:at]
    assert stream.answer.finish_reason == "stop"
    assert stream.answer.usage.completion_tokens < 32
    assert engine.generate("hello", max_new_tokens=32, stop=stop).text == whole[:at]


def end_token_after(engine: Engine, n: int) -> None:
    """Make the n-th token that greedy decoding draws after 'hello' an end token."""
    drawn: list[int] = []
    model = engine.attachment.model
    hook = model.register_forward_hook(lambda m, a, output: drawn.append(int(output.logits[0, -1].argmax())))
    engine.generate("hello", max_new_tokens=n)
    hook.remove()
    assert drawn.index(drawn[-1]) == n - 1, "drawn before: choose another n"
    model.generation_config.eos_token_id = drawn[-1]


def test_the_end_token_ends_the_answer(engine: Engine) -> None:
    end_token_after(engine, 3)
    answer = engine.generate("hello", max_new_tokens=8)
    assert answer.usage.completion_tokens == 3
    assert answer.finish_reason == "stop"


def test_an_answer_does_not_end_before_it_has_begun(corpus: Corpus, first_drawn: int) -> None:
    """Though the model would end it at once; a text that it only continues may end so."""
    engine = corpus.engine
    engine.attachment.model.generation_config.eos_token_id = [first_drawn, engine.tokenizer.eos_token_id]
    assert corpus.ask(QUESTION, max_new_tokens=8, stop=()).usage.completion_tokens > 1
    end_token_after(engine, 1)
    assert engine.generate("hello", max_new_tokens=8).usage.completion_tokens == 1


def test_an_end_token_that_is_also_the_last_one_allowed_is_a_stop(engine: Engine) -> None:
    end_token_after(engine, 3)
    assert engine.generate("hello", max_new_tokens=3).finish_reason == "stop"


def test_a_seed_makes_sampling_repeatable(corpus: Corpus) -> None:
    first, again = (corpus.ask(QUESTION, temperature=1.5, seed=3, max_new_tokens=12).text for _ in range(2))
    assert first == again
    assert len({corpus.ask(QUESTION, temperature=1.5, seed=s, max_new_tokens=12).text for s in range(4)}) > 1


def test_a_seed_leaves_the_callers_random_numbers_alone(corpus: Corpus) -> None:
    before = torch.random.get_rng_state()
    corpus.ask(QUESTION, temperature=1.5, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_from_the_likeliest_token_alone_is_greedy(corpus: Corpus) -> None:
    greedy = corpus.ask(QUESTION, max_new_tokens=12).text
    assert corpus.ask(QUESTION, max_new_tokens=12, temperature=2.0, top_p=1e-6).text == greedy


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_leaving_a_stream_stops_the_model_within_two_tokens(corpus: Corpus, forwards: list[int], leave: str) -> None:
    expected = corpus.ask(QUESTION).text
    corpus.engine.attachment.model.register_forward_hook(lambda *_: time.sleep(0.005))
    stream = corpus.stream(QUESTION, max_new_tokens=300)
    next(stream)
    passes = len(forwards)
    if leave == "close":
        stream.close()
        assert list(stream) == []
    else:
        del stream
    assert len(forwards) <= passes + 2
    assert workers() == []
    assert corpus.ask(QUESTION).text == expected


def test_a_stream_closed_before_its_first_piece_runs_nothing(corpus: Corpus, forwards: list[int]) -> None:
    before = len(forwards)
    stream = corpus.stream(QUESTION)
    stream.close()
    assert list(stream) == []
    assert len(forwards) == before
    assert workers() == []


def test_another_thread_can_cancel_while_the_answer_is_written(corpus: Corpus, forwards: list[int]) -> None:
    third = threading.Event()

    def notice(*_: Any) -> None:
        if len(forwards) - before >= 4:
            third.set()
            time.sleep(0.01)

    before = len(forwards)
    corpus.engine.attachment.model.register_forward_hook(notice)
    stream = corpus.stream(QUESTION, max_new_tokens=300)
    canceller = threading.Thread(target=lambda: third.wait(10) and stream.cancel())
    canceller.start()
    with pytest.raises(CancelledError):
        list(stream)
    canceller.join()
    assert len(forwards) - before < 20
    assert workers() == []


def test_a_long_prompt_can_be_cancelled_between_chunks(engine: Engine) -> None:
    chunks: list[int] = []

    def cancel_in_the_third(module: torch.nn.Module, args: Any, output: Any) -> None:
        chunks.append(output[0].shape[1])
        if len(chunks) == 3:
            stream.cancel()

    engine.attachment.model.base_model.register_forward_hook(cancel_in_the_third)
    stream = engine.stream(LONG)
    with pytest.raises(CancelledError):
        next(stream)
    assert len(chunks) == 3
    assert engine.generate("hello").text


def test_recall_can_be_cancelled(corpus: Corpus) -> None:
    passes: list[int] = []

    def cancel_in_the_first(module: torch.nn.Module, args: Any, output: Any) -> None:
        passes.append(output[0].shape[1])
        stream.cancel()

    corpus.engine.attachment.model.base_model.register_forward_hook(cancel_in_the_first)
    stream = corpus.stream(QUESTION)
    with pytest.raises(CancelledError):
        next(stream)
    # At most the one after it, which the next look at the flag would have stopped.
    assert len(passes) <= 2


def test_a_request_can_be_cancelled_while_another_has_the_model(corpus: Corpus, forwards: list[int]) -> None:
    before = len(forwards)
    stream = corpus.stream(QUESTION)
    timer = threading.Timer(0.1, stream.cancel)
    with corpus.engine.busy():
        timer.start()
        with pytest.raises(CancelledError, match="another request"):
            next(stream)
    assert len(forwards) == before
    assert corpus.ask(QUESTION).text


def test_requests_wait_for_each_other(corpus: Corpus) -> None:
    alone = corpus.ask(QUESTION).text
    first = corpus.stream(QUESTION, max_new_tokens=300)
    next(first)
    second = corpus.stream(QUESTION)
    threading.Timer(0.05, first.cancel).start()
    assert "".join(second) == alone
    with pytest.raises(CancelledError):
        list(first)


class Unforeseen(Exception):
    pass


class Worse(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [Unforeseen("token 3"), Worse("token 3"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "ask"])
def test_what_the_worker_raises_reaches_the_caller_as_itself(
    corpus: Corpus, error: BaseException, streaming: bool
) -> None:
    expected = corpus.ask(QUESTION).text
    tokens: list[None] = []

    def fail_at_the_third(*_: Any) -> None:
        tokens.append(None)
        if len(tokens) == 3:
            raise error

    hook = corpus.engine.attachment.model.lm_head.register_forward_hook(fail_at_the_third)
    with pytest.raises(type(error)) as caught:
        list(corpus.stream(QUESTION)) if streaming else corpus.ask(QUESTION)
    assert caught.value is error
    assert len(tokens) == 3
    assert workers() == []
    hook.remove()
    assert corpus.ask(QUESTION).text == expected


@pytest.mark.parametrize("at", [1, 3])
def test_what_is_no_number_draws_no_token(corpus: Corpus, at: int) -> None:
    expected = corpus.ask(QUESTION).text
    tokens: list[None] = []

    def no_number(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor | None:
        tokens.append(None)
        return out * float("nan") if len(tokens) == at else None

    hook = corpus.engine.attachment.model.lm_head.register_forward_hook(no_number)
    # Without comparing passages, the first pass through the last layer is that of the answer.
    with pytest.raises(UnsupportedModelError, match=r"NaN in torch\.float32"):
        corpus.ask(QUESTION, strategy=Consensus(candidates=0))
    assert len(tokens) == at
    hook.remove()
    assert corpus.ask(QUESTION).text == expected


@pytest.mark.parametrize("prompt", ["hello", LONG[:900], [{"role": "user", "content": "Who is the manufacturer?"}]])
def test_a_prompt_that_fits_the_window_is_answered_as_by_the_stock_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: Any
) -> None:
    if isinstance(prompt, str):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt").input_ids
    assert ids.shape[1] + 20 <= 512
    stock = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    drawn: list[int] = []
    with Engine(model, tokenizer) as engine:
        model.register_forward_hook(lambda m, a, output: drawn.append(int(output.logits[0, -1].argmax())))
        answer = engine.generate(prompt, max_new_tokens=20)
    assert drawn == stock[0, ids.shape[1] :].tolist()
    assert answer.text == tokenizer.decode(drawn, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == ids.shape[1]
    assert answer.sources == []


def test_a_model_whose_config_turns_its_cache_off_answers_all_the_same(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Checkpoints saved during training often say so."""
    with Engine(model, tokenizer) as engine:
        expected = engine.generate("hello", max_new_tokens=8).text
        model.config.use_cache = model.generation_config.use_cache = False
        assert engine.generate("hello", max_new_tokens=8).text == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"stop_strings": ["never"]},
    ],
    ids=str,
)
def test_what_a_checkpoint_asks_of_generation_does_not_keep_it_from_answering(
    engine: Engine, asked: dict[str, Any]
) -> None:
    expected = engine.generate("hello").text
    engine.attachment.model.generation_config.update(**asked)
    assert engine.generate("hello").text == expected


@pytest.mark.parametrize("window", [96, 128, 256, 512])
def test_a_prompt_beyond_the_window_is_read_at_positions_inside_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    model.config.max_position_embeddings = window
    ends: list[int] = []
    rotate = Rotation.__call__

    def noting(self: Rotation, x: torch.Tensor, start: int) -> torch.Tensor:
        ends.append(start + x.shape[2])
        return rotate(self, x, start)

    monkeypatch.setattr(Rotation, "__call__", noting)
    with Engine(model, tokenizer, Config(max_new_tokens=4)) as engine:
        stream = engine.stream("The quick brown fox jumps over it. " * (window // 4))
        assert "".join(stream) == stream.answer.text
        usage = stream.answer.usage
    assert usage.prompt_tokens > 2 * window
    assert usage.completion_tokens == 4
    assert window // 2 < usage.window_tokens == max(ends) <= window


def test_the_beginning_of_a_prompt_beyond_the_window_still_counts(engine: Engine) -> None:
    """A cut prompt would not care what stood at its beginning."""
    drawn = []
    for first in ("apple", "zebra"):
        logits: list[torch.Tensor] = []
        hook = engine.attachment.model.register_forward_hook(lambda m, a, o, to=logits: to.append(o.logits[0, -1]))
        engine.generate(f"{first} {LONG}", max_new_tokens=1)
        hook.remove()
        drawn.append(logits[0])
    assert not torch.equal(drawn[0], drawn[1])
