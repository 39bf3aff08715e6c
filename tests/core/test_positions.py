"""No position ever reaches the trained window, whatever is read and asked; and rotation does not depend on how it is cut."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from reattention_core import Config, Engine
from reattention_core.models.attach import Attachment
from reattention_core.positions import Rotation
from reattention_core.prompts import build_prompt
from reattention_core.tokens import PlainTokenizer
from tests.close import assert_close
from tests.core.families import FAMILIES, build

WORDS = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "while", "a", "cache", "keeps", "keys"]


def text(n_words: int, first: int = 0) -> str:
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(n_words))


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For every rotation, the number after the last position it was given."""
    seen: list[int] = []
    rotate = Rotation.__call__

    def noted(self: Rotation, x: torch.Tensor, start: int) -> torch.Tensor:
        assert start >= 0
        seen.append(start + x.shape[2])
        return rotate(self, x, start)

    monkeypatch.setattr(Rotation, "__call__", noted)
    return seen


def test_no_position_reaches_the_window_whatever_is_read_and_asked(engine: Engine, stops: list[int]) -> None:
    """Corpora of a few tokens to several windows of 512, and questions of all lengths that are not refused."""
    most = 0
    while len(build_prompt(engine.tokens, engine.config, text(most + 1)).ids) + 2 <= engine.window - 64:
        most += 1
    assert most > 100
    widest = []

    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(
        read=st.sampled_from(["consensus", "reattention", "longheads"]),
        mode=st.sampled_from(["independent", "joint"]),
        asked=st.sampled_from(["consensus", "reattention", "longheads"]),
        lengths=st.lists(st.one_of(st.integers(1, 60), st.integers(150, 400)), min_size=1, max_size=3),
        asking=st.one_of(st.integers(1, most), st.just(most)),
    )
    def check(read: str, mode: Literal["independent", "joint"], asked: str, lengths: list[int], asking: int) -> None:
        stops.clear()
        asked = "consensus" if asked == "longheads" != read else asked
        texts = [text(n, first) for first, n in enumerate(lengths)]
        corpus = engine.ingest(texts, mode=mode, strategy=read, progress=False)
        answer = corpus.ask(text(asking), strategy=asked, max_new_tokens=2)
        assert max(stops) <= engine.window
        assert answer.usage.window_tokens <= engine.window
        widest.append(max(stops))

    check()
    assert max(widest) > engine.window * 9 // 10, "some example must come near"


@pytest.mark.parametrize("strategy", ["consensus", "longheads"])
@pytest.mark.parametrize("n_words", [1, 200, 700])
def test_no_position_reaches_the_window_in_a_prompt_of_any_length(
    engine: Engine, stops: list[int], strategy: Literal["consensus", "longheads"], n_words: int
) -> None:
    engine.config = engine.config.model_copy(update={"strategy": strategy})
    answer = engine.generate(text(n_words), max_new_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert 0 < max(stops) <= engine.window
    assert (answer.usage.prompt_tokens > engine.window) == (n_words == 700)


@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
def test_no_position_reaches_the_window_at_its_very_edge(engine: Engine, stops: list[int], extra: int) -> None:
    """Prompt and answer as long as the window, a token shorter, and one or two longer."""
    words = text(600)
    ids = engine.tokens.encode(words)
    prompt = words[: ids.spans[engine.window - 2 + extra - 1][1]]
    answer = engine.generate(prompt, max_new_tokens=2)
    assert answer.usage.prompt_tokens == engine.window - 2 + extra
    assert max(stops) <= engine.window
    if extra <= 0:
        assert max(stops) == engine.window - 1 + extra, "everything is seen but the last token drawn, which is not run"


def sliding(width: int) -> MistralForCausalLM:
    """All layers see the last `width` tokens by the model's own design; trained on 512."""
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=width,
        eos_token_id=None,
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("strategy", ["consensus", "reattention", "longheads"])
@pytest.mark.parametrize("width", [8, 200])
def test_no_position_reaches_the_window_with_sliding_layers(
    tokenizer: PreTrainedTokenizerFast, stops: list[int], width: int, strategy: str
) -> None:
    with Engine(sliding(width), tokenizer, Config(stop=())) as engine:
        for mode in ("independent", "joint"):
            corpus = engine.ingest([text(250), text(300, 5)], mode=mode, strategy=strategy, progress=False)
            corpus.ask(text(40), strategy=strategy, max_new_tokens=2)
    assert max(stops) <= 512


@pytest.mark.parametrize("strategy", ["reattention", "longheads"])
@pytest.mark.parametrize("width", [500, 600])
def test_a_sliding_window_about_as_wide_as_the_trained_one_is_no_obstacle(
    tokenizer: PreTrainedTokenizerFast, stops: list[int], width: int, strategy: str
) -> None:
    """As in Phi-3-mini-128k: trained on 131,072 tokens, with a sliding window of 262,144."""
    with Engine(sliding(width), tokenizer, Config(stop=())) as engine:
        corpus = engine.ingest([text(250), text(300, 5)], mode="joint", strategy=strategy, progress=False)
        corpus.ask(text(40), strategy=strategy, max_new_tokens=2)
    assert max(stops) <= 512


ROTATED = ["llama", "glm", "cohere", "phi", "phi3", "gpt_neox", "gpt_oss", "gemma3_text", "granite_swa"]
SCALED = ["llama-yarn", "llama-llama3", "llama-linear", "llama-dynamic"]


@torch.inference_mode()
@pytest.mark.parametrize("family", [*ROTATED, *SCALED])
def test_rotating_in_parts_is_rotating_at_once(family: str) -> None:
    """A window grows token by token, and must stay what it would be if it were rotated as a whole."""
    with Attachment(build(family, FAMILIES[family])) as attachment:
        for layer, rotation in enumerate(attachment.rotations):
            groups, dim, _ = attachment.shapes[layer]
            x = torch.randn(2, groups, 200, dim)
            whole = rotation(x, 0)
            for cuts in ([40, 160], [1, 63, 1, 135], [0, 199, 1]):
                parts, start = [], 0
                for part in x.split(cuts, 2):
                    parts.append(rotation(part, start))
                    start += part.shape[2]
                assert_close(f"layer {layer}", torch.cat(parts, 2), whole, 1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "glm", "phi", "gpt_neox", "llama-llama3"])
def test_scores_follow_from_the_distance_alone(family: str) -> None:
    """What lets positions be given anew: moving query and key alike changes no score, moving one of them does."""
    with Attachment(build(family, FAMILIES[family])) as attachment:
        groups, dim, _ = attachment.shapes[0]
        query, key = torch.randn(1, groups, 1, dim), torch.randn(1, groups, 1, dim)
        rotate = attachment.rotations[0]
        scores = [(rotate(query, a) * rotate(key, b)).sum(-1) for a, b in [(9, 2), (209, 202), (7, 0), (10, 2)]]
    assert_close("moved", scores[1], scores[0], 1e-4)
    assert_close("moved to the front", scores[2], scores[0], 1e-4)
    assert (scores[3] - scores[0]).abs().max() > 1e-2


@torch.inference_mode()
@pytest.mark.parametrize(("family", "rotated"), [("phi", 8), ("phi3", 8), ("glm", 8), ("gpt_neox", 4), ("llama", 16)])
def test_a_partial_rotation_leaves_the_rest_of_the_head_alone(family: str, rotated: int) -> None:
    with Attachment(build(family, FAMILIES[family])) as attachment:
        groups, dim, _ = attachment.shapes[0]
        x = torch.randn(1, groups, 3, dim)
        ours = attachment.rotations[0](x, 5)
    assert torch.equal(ours[..., rotated:], x[..., rotated:])
    assert (ours - x)[..., :rotated].abs().amin((0, 1, 2)).max() > 0
    assert all((ours - x)[..., i].abs().max() > 0 for i in range(rotated))


def test_position_zero_changes_nothing_and_neither_does_a_layer_without_positions() -> None:
    x = torch.randn(1, 2, 3, 16)
    assert torch.equal(Rotation()(x, 100), x)
    with Attachment(build("smollm3", FAMILIES["smollm3"])) as attachment:
        rotations = attachment.rotations
        assert_close("first token", rotations[0](x, 0)[:, :, :1], x[:, :, :1], 1e-6)
        assert not torch.equal(rotations[0](x, 0), x)
        assert torch.equal(rotations[1](x, 100), x), "its second layer has none"
        assert rotations[0](x[:, :, :0], 7).shape == (1, 2, 0, 16)


@pytest.mark.parametrize("n", [30, 60, 100])
def test_a_longrope_window_ends_where_its_factors_would_change(tokenizer: PreTrainedTokenizerFast, n: int) -> None:
    """At 64 tokens here, at 4,096 in Phi-3-mini-128k: inside it all is as in the stock model, beyond it one selects."""
    model = build("phi3-longrope", FAMILIES["phi3-longrope"] | dict(vocab_size=512))
    encoded = PlainTokenizer(tokenizer, 512).encode(text(200))
    prompt = text(200)[: encoded.spans[n - 1][1]]
    ids = torch.tensor([encoded.ids[:n]])
    stock = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    with Engine(model, tokenizer, Config(cache_dtype="float32", stop=())) as engine:
        assert engine.window == 64
        answer = engine.generate(prompt, max_new_tokens=8)
    assert answer.usage.prompt_tokens == n
    assert answer.usage.completion_tokens == 8
    assert answer.usage.window_tokens <= 64
    if n + 8 <= 64:
        assert answer.text == tokenizer.decode(stock[0, n:], skip_special_tokens=True)
