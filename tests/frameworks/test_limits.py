"""Both frameworks: prompts and answers beyond a limit, and an event loop that stays quick while the model reads."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from pydantic import ValidationError

from langchain_reattention import ChatReAttention
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Engine
from reattention_core.cache.pages import PAGE
from reattention_core.errors import (
    AnswerTimeoutError,
    CancelledError,
    ContextTooLongError,
    InvalidConfigError,
    InvalidRequestError,
)
from reattention_core.frameworks import shared
from reattention_core.frameworks.conversation import CAPACITY
from reattention_core.memory import prompt_tokens
from tests.frameworks.conftest import Steps, stopped

BOTH = pytest.mark.parametrize("framework", ["langchain", "llama_index"])


def made(framework: str, **settings: Any) -> Any:
    return ChatReAttention(**settings) if framework == "langchain" else ReAttentionLLM(**settings)


def asks(model: Any) -> list[Callable[[str], Coroutine[Any, Any, str]]]:
    """The four ways of asking, each as a coroutine of the text."""

    async def invoke(text: str) -> str:
        if isinstance(model, ChatReAttention):
            return str(model.invoke(text).content)
        return str(model.complete(text).text)

    async def ainvoke(text: str) -> str:
        if isinstance(model, ChatReAttention):
            return str((await model.ainvoke(text)).content)
        return str((await model.acomplete(text)).text)

    async def stream(text: str) -> str:
        if isinstance(model, ChatReAttention):
            return "".join(str(chunk.content) for chunk in model.stream(text))
        return "".join(chunk.delta or "" for chunk in model.stream_complete(text))

    async def astream(text: str) -> str:
        if isinstance(model, ChatReAttention):
            return "".join([str(chunk.content) async for chunk in model.astream(text)])
        return "".join([chunk.delta or "" async for chunk in await model.astream_complete(text)])

    return [invoke, ainvoke, stream, astream]


@pytest.mark.shows("prompts beyond the capacity are an error with both numbers")
@BOTH
async def test_a_prompt_beyond_the_capacity_is_the_frameworks_error_with_both_numbers(
    framework: str, engine: Engine
) -> None:
    model = made(framework, engine=engine, max_tokens=12, context_window=100)
    kind = ContextOverflowError if framework == "langchain" else ValueError
    for ask in asks(model):
        assert await ask("fox")
        with pytest.raises(kind, match="the answer may take 12, more than the 100 that are allowed") as caught:
            await ask("fox " * 90)
        assert isinstance(caught.value, ContextTooLongError)
        assert caught.value.limit == 100 < caught.value.n_tokens
        assert f"{caught.value.n_tokens - 12} tokens" in str(caught.value)


@BOTH
def test_a_prompt_just_within_the_capacity_is_read_to_its_end(framework: str, engine: Engine) -> None:
    whole = made(framework, engine=engine, max_tokens=12)
    text = "fox " * 90 + "What does it do?"
    if framework == "langchain":
        message = whole.invoke(text)
        needed, answer = message.usage_metadata["input_tokens"] + 12, message.content
        assert made(framework, engine=engine, max_tokens=12, context_window=needed).invoke(text).content == answer
        with pytest.raises(ContextOverflowError):
            made(framework, engine=engine, max_tokens=12, context_window=needed - 1).invoke(text)
    else:
        response = whole.complete(text)
        needed, answer = response.raw["usage"]["prompt_tokens"] + 12, response.text
        assert made(framework, engine=engine, max_tokens=12, context_window=needed).complete(text).text == answer
        with pytest.raises(ContextTooLongError):
            made(framework, engine=engine, max_tokens=12, context_window=needed - 1).complete(text)


@pytest.mark.shows("prompts beyond the capacity are an error with both numbers")
@BOTH
async def test_memory_is_a_limit_too(framework: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reattention_core.memory.free_bytes", lambda _: 100_000)
    holds = prompt_tokens(engine.attachment)
    assert holds == 95_000 // 512, "2 layers, keys and values of 2 heads, 16 numbers, 4 bytes"
    model = made(framework, engine=engine, max_tokens=12)
    with pytest.raises(ContextTooLongError, match=f"more than the {holds} that memory holds now"):
        await asks(model)[1]("fox " * holds)


@pytest.mark.shows("prompts beyond the capacity are an error with both numbers")
@BOTH
async def test_a_question_to_a_corpus_beyond_the_window(framework: str, engine: Engine, notes: str) -> None:
    model = made(framework, engine=engine, corpus=notes, max_tokens=12)
    kind = ContextOverflowError if framework == "langchain" else ValueError
    with pytest.raises(kind, match="window of 512") as caught:
        await asks(model)[0]("fox " * 500)
    assert isinstance(caught.value, ContextTooLongError) and caught.value.limit == 512


@pytest.mark.shows("settings of an instance and of a call, stop strings")
@BOTH
@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("max_tokens", -1, "max_new_tokens"),
        ("temperature", -0.5, "temperature"),
        ("temperature", math.nan, "temperature"),
        ("top_p", 0.0, "top_p"),
        ("repetition_penalty", 0.0, "repetition_penalty"),
        ("stop", [""], "stop"),
    ],
)
async def test_settings_that_are_not_allowed_are_named_however_they_are_given(
    framework: str, engine: Engine, setting: str, value: Any, name: str
) -> None:
    with pytest.raises(ValidationError, match=name):
        made(framework, engine=engine, **{setting: value})
    model = made(framework, engine=engine, max_tokens=4)
    with pytest.raises(InvalidConfigError, match=name):
        _ = (
            model.invoke("fox", **{setting: value})
            if framework == "langchain"
            else model.complete("fox", **{setting: value})
        )
    with pytest.raises(InvalidConfigError, match=name):
        if framework == "langchain":
            await model.ainvoke("fox", **{setting: value})
        else:
            await model.acomplete("fox", **{setting: value})


@BOTH
async def test_half_of_a_character_is_no_text(framework: str, engine: Engine) -> None:
    for ask in asks(made(framework, engine=engine, max_tokens=4)):
        with pytest.raises(InvalidRequestError, match="lone surrogate"):
            await ask("fox \ud800")


def announced(model: Any) -> int:
    return int(
        model.profile["max_input_tokens"] if isinstance(model, ChatReAttention) else model.metadata.context_window
    )


@pytest.mark.shows("what the framework plans with")
@BOTH
def test_what_the_framework_plans_with_is_the_capacity(
    framework: str, engine: Engine, notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattention_core.memory.free_bytes", lambda _: 1 << 30)
    assert announced(made(framework, engine=engine)) == prompt_tokens(engine.attachment) == (1 << 30) * 0.95 // 512
    assert announced(made(framework, engine=engine, context_window=70_000)) == 70_000
    assert announced(made(framework, engine=engine, corpus=notes)) == 512 - 2 * PAGE
    monkeypatch.setattr(shared, "_slots", {})
    if framework == "langchain":  # LlamaIndex's also says whether the tokenizer has a template
        assert announced(made(framework, model="some/model")) == CAPACITY, "not loaded"


@pytest.mark.shows("answers that take too long")
@BOTH
async def test_an_answer_that_takes_too_long_is_the_frameworks_error(
    framework: str, engine: Engine, steps: Steps
) -> None:
    model = made(framework, engine=engine, max_tokens=400, timeout=0.3)
    kind = ModelTimeoutError if framework == "langchain" else TimeoutError
    steps.delay = 0.02
    for ask in asks(model):
        began = time.perf_counter()
        with pytest.raises(kind, match=r"longer than its timeout of 0\.3 s") as caught:
            await ask("fox")
        assert isinstance(caught.value, AnswerTimeoutError)
        assert time.perf_counter() - began < 4, "400 tokens take 8 s"
        assert await stopped(steps)
    steps.delay = 0
    quick = made(framework, engine=engine, max_tokens=4, timeout=60)
    assert [await ask("fox") for ask in asks(quick)]


async def test_waiting_counts_and_cancelling_is_no_timeout(engine: Engine) -> None:
    model = ReAttentionLLM(engine=engine, timeout=0.3)
    with engine.busy(), pytest.raises(AnswerTimeoutError):
        await model.acomplete("fox")
    stream = model._begin("fox", {"max_tokens": 200}, {})
    next(stream)
    stream.cancel()
    with pytest.raises(CancelledError):
        list(stream)


async def late(work: Coroutine[Any, Any, Any]) -> float:
    """Seconds that the event loop kept a task waiting beyond what it asked for, at the 99th percentile, during the work."""
    waited: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            waited.append(time.perf_counter() - began - 0.005)

    ticker = asyncio.create_task(tick())
    await work
    ticker.cancel()
    assert len(waited) > 50, "the work was too short to measure"
    return sorted(waited)[math.ceil(len(waited) * 0.99) - 1]


@pytest.mark.shows("the event loop is never blocked")
@BOTH
async def test_the_event_loop_is_quick_while_the_model_reads(framework: str, engine: Engine) -> None:
    """On a machine that others use, a quiet loop is late too: that much more is allowed, and the best of three counts."""
    model = made(framework, engine=engine, max_tokens=1)
    text = "The quick brown fox jumps over the lazy dog. " * 300
    asked = asks(model)[1]
    for _ in range(3):
        began = time.perf_counter()
        during = await late(asked(text))
        quiet = await late(asyncio.sleep(time.perf_counter() - began))
        if during < 0.05 + quiet:
            return
    raise AssertionError(
        f"a task waited {during * 1000:.0f} ms at the 99th percentile, {quiet * 1000:.0f} ms without work"
    )
