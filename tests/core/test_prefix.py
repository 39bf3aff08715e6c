"""Prompts that begin alike: what is taken over, that it changes no answer, and what is forgotten when room is short."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Engine, ReAttention
from reattention_core.cache import prefix
from reattention_core.cache.kept import Kept
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.pages import PAGE
from reattention_core.cache.prefix import PrefixTree
from reattention_core.errors import CancelledError
from reattention_core.select.fixed import Everything
from tests.core.families import FAMILIES, build

TEXT = "The quick brown fox jumps over the lazy dog, and a cache keeps its keys and values. " * 8
PAGE_BYTES = 2 * 2 * 2 * PAGE * 16 * 4
"""Keys and values of a page in the tiny model: 2 layers of 2 heads of 16 dimensions, float32."""


def cold(engine: Engine, prompt: str, **settings: Any) -> str:
    engine.prefixes.release()
    answer = engine.generate(prompt, **settings)
    assert answer.usage.cached_tokens == 0
    return answer.text


@pytest.fixture
def run(engine: Engine) -> list[int]:
    """Tokens of every forward pass."""
    widths: list[int] = []
    engine.attachment.model.base_model.register_forward_hook(lambda m, a, output: widths.append(output[0].shape[1]))
    return widths


@pytest.mark.parametrize("same", [0, 31, 40, 200, 400, 672])
def test_a_prompt_that_begins_alike_is_answered_as_if_it_were_read_alone(engine: Engine, same: int) -> None:
    prompt = TEXT[:same] + "Something else entirely, which nobody has read before."
    expected = cold(engine, prompt)
    engine.prefixes.release()
    engine.generate(TEXT)
    answer = engine.generate(prompt)
    assert answer.text == expected
    assert same // 8 - PAGE < answer.usage.cached_tokens <= same
    assert answer.usage.cached_tokens % PAGE == 0


def test_the_same_prompt_again_runs_only_its_end(engine: Engine, run: list[int]) -> None:
    first = engine.generate(TEXT, max_new_tokens=1)
    n = first.usage.prompt_tokens
    run.clear()
    again = engine.generate(TEXT, max_new_tokens=1)
    assert again.text == first.text
    assert again.usage.cached_tokens == (n - 1) // PAGE * PAGE
    assert sum(run) == n - again.usage.cached_tokens == again.usage.prompt_tokens


@pytest.mark.parametrize(
    "rule", [None, ReAttention(global_size=32, local_size=128, recall_clip=4, span=16, chunk_size=64)]
)
@pytest.mark.parametrize("extra", [0, 7, 300])
def test_beyond_the_window_whole_chunks_are_taken_over(engine: Engine, rule: ReAttention | None, extra: int) -> None:
    """What a chunk reads depends on all its queries, so a prefix that ended inside one would be another reading."""
    prompt, other = TEXT * 8 + " more" * extra, TEXT * 8 + " and then some words"
    chunk = (rule or ReAttention.for_window(512)).chunk_size
    logits: list[torch.Tensor] = []
    engine.attachment.model.register_forward_hook(lambda m, a, o: logits.append(o.logits[0, -1]))
    expected = cold(engine, prompt, strategy=rule)
    engine.prefixes.release()
    engine.generate(other, strategy=rule)
    seen = len(logits)
    answer = engine.generate(prompt, strategy=rule)
    assert answer.text == expected
    assert answer.usage.cached_tokens > 512
    assert answer.usage.cached_tokens % chunk == 0
    assert torch.equal(logits[seen], logits[0]), "chunk by chunk it is the same computation"


def test_ways_of_reading_are_kept_apart(engine: Engine) -> None:
    prompt = TEXT * 8
    expected = {size: cold(engine, prompt, strategy=own(size)) for size in (64, 32)}
    engine.prefixes.release()
    for size in (64, 32, 64):
        answer = engine.generate(prompt, strategy=own(size))
        assert answer.text == expected[size]
    assert answer.usage.cached_tokens > 0
    assert engine.generate(TEXT, strategy=own(16)).usage.cached_tokens == 0


def own(chunk: int) -> ReAttention:
    return ReAttention(global_size=32, local_size=128, recall_clip=4, span=16, chunk_size=chunk)


def test_a_rule_that_says_nothing_of_prefixes_reads_every_prompt_anew(engine: Engine) -> None:
    for _ in range(2):
        assert engine.generate(TEXT, strategy="longheads").usage.cached_tokens == 0
    assert engine.prefixes.kept.nbytes == 0


def test_a_question_to_a_corpus_leaves_and_takes_nothing(engine: Engine) -> None:
    corpus = engine.ingest([TEXT], progress=False)
    corpus.ask("Which fox? " * 20)
    corpus.ask("Which fox? " * 20)
    assert (engine.prefixes.hits, engine.prefixes.misses, engine.prefixes.kept.nbytes) == (0, 0, 0)


def test_a_chat_takes_over_its_earlier_turns(engine: Engine) -> None:
    messages = [{"role": "user", "content": TEXT[:300]}]
    answers = []
    for _ in range(3):
        answer = engine.generate(messages)
        answers.append(answer.usage)
        messages += [
            {"role": "assistant", "content": answer.text or "…"},
            {"role": "user", "content": "And then? " * 8},
        ]
    expected = engine.generate(messages)
    engine.prefixes.release()
    assert engine.generate(messages).text == expected.text
    cached = [usage.cached_tokens for usage in answers]
    assert cached[0] == 0 < cached[1] < cached[2] < expected.usage.cached_tokens
    assert expected.usage.prompt_tokens < 150 < expected.usage.cached_tokens


def test_a_penalty_counts_the_words_of_a_prefix_that_was_not_run(engine: Engine) -> None:
    prompt = TEXT[:400]
    plain = cold(engine, prompt, max_new_tokens=24)
    expected = cold(engine, prompt, max_new_tokens=24, repetition_penalty=1.9)
    assert plain != expected
    assert engine.generate(prompt, max_new_tokens=24, repetition_penalty=1.9).text == expected
    engine.attachment.model.generation_config.repetition_penalty = 1.9
    assert engine.generate(prompt, max_new_tokens=24).text == expected


def test_sampling_with_a_seed_gives_the_same_from_a_prefix(engine: Engine) -> None:
    drawn = dict(temperature=1.5, seed=3, max_new_tokens=24)
    expected = cold(engine, TEXT, **drawn)
    answer = engine.generate(TEXT, **drawn)
    assert (answer.text, answer.usage.cached_tokens > 0) == (expected, True)


@pytest.mark.parametrize(
    "label", ["gemma2", "qwen2-window", "phi3", "gpt_oss", "cohere2", "llama-yarn", "mixtral", "stablelm"]
)
def test_models_of_other_kinds_answer_from_a_prefix_as_without_one(
    label: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build(label, {**FAMILIES[label], "vocab_size": 512})
    model.generation_config.eos_token_id = None
    logits: list[torch.Tensor] = []
    with Engine(model, tokenizer, Config(max_new_tokens=6), tmp_path) as engine:
        model.register_forward_hook(lambda m, a, o: logits.append(o.logits[0, -1]))
        for text in (TEXT[:500], TEXT * 4):
            expected = cold(engine, text)
            first = logits[-6]
            answer = engine.generate(text)
            assert answer.text == expected
            assert answer.usage.cached_tokens > answer.usage.prompt_tokens
            torch.testing.assert_close(logits[-6], first, rtol=1e-4, atol=1e-4)


# --- the tree alone


class Tokens(ContextCache):
    """A cache of one layer and one head, in which a token's key is its place and its value its id."""

    def __init__(self, ids: list[int] | None = None) -> None:
        super().__init__(1, Everything(), 1 << 20)
        if ids is not None:
            place = torch.arange(len(ids)).float().view(1, 1, -1, 1)
            self.layers[0].update(place, torch.tensor(ids).float().view(1, 1, -1, 1))

    def holds(self, ids: list[int], n: int) -> bool:
        layer = self.layers[0]
        if n == 0:
            return layer.n_tail == 0
        places, values = layer.tail_keys.tokens.flatten().tolist(), layer.tail_values.tokens.flatten().tolist()
        return (places, values) == (list(range(n)), ids[:n])


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(prompts=PROMPTS, limit=st.sampled_from([0, 600, 2048, 1 << 20]), step=st.sampled_from([1, 2, 3]))
def test_a_tree_gives_the_longest_beginning_it_has_room_for(prompts: list[list[int]], limit: int, step: int) -> None:
    """Each number becomes a page; with room for all it is the longest common beginning of what was kept, in steps."""
    tree, seen = PrefixTree(Kept(limit)), list[list[int]]()
    for pages in prompts:
        ids = [page + 2 * i for page in pages for i in range(PAGE)]
        cache = Tokens()
        n = tree.take("a", ids, step * PAGE, cache)
        assert cache.holds(ids, n)
        best = max([common(ids[:-1], other) for other in seen], default=0) // (step * PAGE) * step * PAGE
        assert n == best if limit == 1 << 20 else n <= best
        tree.keep("a", ids, step * PAGE, Tokens(ids))
        seen.append(ids[: len(ids) // (step * PAGE) * step * PAGE])
        assert tree.kept.nbytes == sum(entry.nbytes for entry in tree.kept) <= limit
        assert tree.take("b", ids, PAGE, Tokens()) == 0
    tree.release()
    assert (tree.kept.nbytes, len(tree.kept), tree._places) == (0, 0, {})


def common(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n // PAGE * PAGE


def test_hashes_that_collide_are_told_apart_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_digest", lambda before, tokens: bytes([len(tokens) % 3]))
    tree, one, two = PrefixTree(Kept(1 << 20)), [1] * 64 + [9], [2] * 64 + [9]
    for ids in (one, two, one):
        cache = Tokens()
        n = tree.take("a", ids, PAGE, cache)
        assert cache.holds(ids, n)
        tree.keep("a", ids, PAGE, Tokens(ids))
    assert n == PAGE, "its first page; the second has the first one's hash"


def test_equal_pages_after_different_ones_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of a page alone, not chained: only where it stands in the tree says what was before it."""
    monkeypatch.setattr(prefix, "_digest", lambda before, tokens: tokens[:16])
    tree = PrefixTree(Kept(1 << 20))
    tree.keep("a", [1] * 32 + [3] * 32, PAGE, Tokens([1] * 32 + [3] * 32))
    tree.keep("a", [2] * 32, PAGE, Tokens([2] * 32))
    assert tree.take("a", [2] * 32 + [3] * 32 + [0], PAGE, Tokens()) == PAGE


def test_the_least_recently_used_goes_first_and_never_what_others_continue() -> None:
    page = PAGE * 2 * 4
    tree = PrefixTree(Kept(4 * page))
    a, b, c = [1] * 32, [2] * 32, [3] * 32
    tree.keep("w", a, PAGE, Tokens(a))
    tree.keep("w", b, PAGE, Tokens(b))
    tree.keep("w", a + c, PAGE, Tokens(a + c))
    tree.keep("w", a + b, PAGE, Tokens(a + b))
    assert tree.take("w", [*b, 0], PAGE, Tokens()) == PAGE  # b is newer than a + c and a + b now
    tree.keep("w", c, PAGE, Tokens(c))
    assert [tree.take("w", [*ids, 0], PAGE, Tokens()) for ids in (a + c, a + b, b, c)] == [PAGE, 2 * PAGE, PAGE, PAGE]
    assert tree.kept.evictions == 1


def test_a_prompt_larger_than_the_budget_keeps_its_beginning() -> None:
    tree = PrefixTree(Kept(3 * prefix.RUN * PAGE * 2 * 4))
    ids = [i % 97 for i in range(5 * prefix.RUN * PAGE)]
    tree.keep("w", ids, PAGE, Tokens(ids))
    cache = Tokens()
    n = tree.take("w", ids, PAGE, cache)
    assert n == 3 * prefix.RUN * PAGE
    assert cache.holds(ids, n)
    assert tree.kept.evictions == 0


# --- faults


def test_bytes_are_counted_and_never_exceed_the_budget(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with Engine(model, tokenizer, Config(max_new_tokens=2, prefix_bytes=9 * PAGE_BYTES), tmp_path) as engine:
        rng = random.Random(1)
        for _ in range(20):
            engine.generate(" ".join(rng.choice(["fox", "dog", "cache"]) for _ in range(rng.randrange(20, 120))))
            kept = engine.prefixes.kept
            stored = {t for run in kept for t in (*run.keys, *run.values)}  # type: ignore[attr-defined]
            assert kept.nbytes == sum(t.untyped_storage().nbytes() for t in stored) <= 9 * PAGE_BYTES
        assert kept.evictions > 0


def test_a_budget_of_nothing_keeps_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with Engine(model, tokenizer, Config(max_new_tokens=2, prefix_bytes=0), tmp_path) as engine:
        texts = [engine.generate(TEXT) for _ in range(2)]
        assert texts[0].text == texts[1].text
        assert texts[1].usage.cached_tokens == engine.prefixes.kept.nbytes == 0


def test_a_prompt_that_was_cancelled_is_taken_up_where_it_stopped(engine: Engine, run: list[int]) -> None:
    prompt = TEXT * 10
    expected = cold(engine, prompt)
    n = sum(run) - 7  # the answer's tokens but the last
    engine.prefixes.release()
    run.clear()
    stream = engine.stream(prompt)
    hook = engine.attachment.model.base_model.register_forward_pre_hook(
        lambda *_: stream.cancel() if len(run) == 5 else None
    )
    with pytest.raises(CancelledError):
        next(stream)
    hook.remove()
    assert len(run) == 6
    answer = engine.generate(prompt)
    assert answer.text == expected
    assert answer.usage.cached_tokens == sum(run[:6]) < n


def test_memory_that_runs_out_while_keeping_costs_the_kept_and_not_the_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cold(engine, TEXT)
    engine.prefixes.release()
    engine.generate(TEXT[:150])
    assert engine.prefixes.kept.nbytes > 0
    with monkeypatch.context() as patch:
        patch.setattr(PrefixTree, "_copy", raising(torch.OutOfMemoryError("CUDA out of memory")))
        assert engine.generate(TEXT).text == expected
    assert (engine.prefixes.kept.nbytes, engine.prefixes._places) == (0, {})
    engine.generate(TEXT)
    assert engine.generate(TEXT).usage.cached_tokens > 0


def test_memory_that_runs_out_in_the_middle_of_a_copy_leaves_a_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, ids = PrefixTree(Kept(1 << 20)), [i % 97 for i in range(3 * prefix.RUN * PAGE)]
    clone, left = torch.Tensor.clone, 3

    def failing(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError("out of memory")
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", failing)
    with pytest.raises(torch.OutOfMemoryError):
        tree.keep("w", ids, PAGE, Tokens(ids))
    monkeypatch.undo()
    assert tree.take("w", ids, PAGE, Tokens()) == prefix.RUN * PAGE
    tree.keep("w", ids, PAGE, Tokens(ids))
    assert tree.take("w", [*ids, 0], PAGE, Tokens()) == len(ids)
    tree.release()
    assert (tree.kept.nbytes, len(tree.kept)) == (0, 0)


def raising(error: Exception) -> Any:
    def fail(*args: Any) -> None:
        raise error

    return fail


def test_an_error_in_the_middle_of_a_forward_pass_leaves_nothing_half_read(engine: Engine) -> None:
    expected = cold(engine, TEXT)
    engine.prefixes.release()
    layer = engine.attachment.model.base_model.layers[1]
    hook = layer.register_forward_pre_hook(raising(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        engine.generate(TEXT)
    hook.remove()
    answer = engine.generate(TEXT)
    assert (answer.text, answer.usage.cached_tokens) == (expected, 0)


def test_a_corpus_gets_the_memory_that_prefixes_took(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate(TEXT)
    kept = engine.prefixes.kept
    assert kept.nbytes
    monkeypatch.setattr("reattention_core.memory.free_bytes", lambda device: 0 if kept.nbytes else 1 << 40)
    assert engine.ingest([TEXT], progress=False).ask("Which fox?").text
    assert kept.nbytes == 0


@pytest.mark.parametrize("pages", [0, 5, 1000])
def test_threads_get_the_answers_that_one_alone_gets(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pages: int
) -> None:
    config = Config(max_new_tokens=3, prefix_bytes=pages * PAGE_BYTES)
    prompts = [TEXT[: 40 * (1 + i % 5)] + f"Which animal is number {i}?" for i in range(8)]
    with Engine(model, tokenizer, config, tmp_path) as engine:
        expected = {prompt: cold(engine, prompt) for prompt in prompts}
        asked = prompts * 4
        random.Random(0).shuffle(asked)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(engine.generate, asked))
        assert [answer.text for answer in answers] == [expected[prompt] for prompt in asked]
        assert any(answer.usage.cached_tokens for answer in answers) == (pages > 0)
        assert engine.prefixes.kept.nbytes <= pages * PAGE_BYTES
    assert len(set(expected.values())) > 1


def test_a_tree_may_be_used_by_threads_at_once() -> None:
    tree = PrefixTree(Kept(20 * PAGE * 2 * 4))
    wrong: list[list[int]] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            ids = [page for page in (rng.randrange(2) for _ in range(rng.randrange(1, 9))) for _ in range(PAGE)]
            cache = Tokens()
            if not cache.holds(ids, tree.take("w", ids, PAGE, cache)):
                wrong.append(ids)
            tree.keep("w", ids, PAGE, Tokens(ids))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert tree.kept.nbytes == sum(entry.nbytes for entry in tree.kept) <= tree.kept.limit
