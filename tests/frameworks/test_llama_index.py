"""LlamaIndex: the eight endpoints over a tiny model, and one question to the bundled one."""

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, ImageBlock, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatInProgressEvent, LLMChatStartEvent
from llama_index.core.instrumentation.events.span import SpanDropEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.utilities.token_counting import TokenCounter
from pydantic import Field, ValidationError

from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Engine
from reattention_core.errors import (
    CorpusNotFoundError,
    EmptyPromptError,
    EngineClosedError,
    InvalidConfigError,
    InvalidRequestError,
)
from reattention_core.frameworks.shared import shared_engine
from tests.frameworks.conftest import Steps, stopped, watched

ASKED = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="What does the fox do?")]


@pytest.fixture
def llm(engine: Engine) -> ReAttentionLLM:
    return ReAttentionLLM(engine=engine, max_tokens=12)


@pytest.mark.shows("answers, whole and streamed, also asynchronous")
async def test_all_chat_endpoints_give_the_same_answer(llm: ReAttentionLLM) -> None:
    response = llm.chat(ASKED)
    text = response.message.content
    assert text and response.message.role == MessageRole.ASSISTANT
    streamed = list(llm.stream_chat(ASKED))
    astreamed = [chunk async for chunk in await llm.astream_chat(ASKED)]
    for chunks in (streamed, astreamed):
        assert "".join(chunk.delta or "" for chunk in chunks) == text
        assert all(a.message.content + b.delta == b.message.content for a, b in pairwise(chunks))
        assert [chunk.raw for chunk in chunks] == [None] * (len(chunks) - 1) + [response.raw]
    assert (await llm.achat(ASKED)).message.content == text


@pytest.mark.shows("answers, whole and streamed, also asynchronous")
@pytest.mark.parametrize("formatted", [True, False])
async def test_all_complete_endpoints_give_the_same_answer(llm: ReAttentionLLM, formatted: bool) -> None:
    response = llm.complete("The quick brown", formatted=formatted)
    assert response.text
    streamed = list(llm.stream_complete("The quick brown", formatted=formatted))
    astreamed = [chunk async for chunk in await llm.astream_complete("The quick brown", formatted=formatted)]
    for chunks in (streamed, astreamed):
        assert "".join(chunk.delta or "" for chunk in chunks) == response.text == chunks[-1].text
        assert chunks[-1].raw == response.raw
    assert (await llm.acomplete("The quick brown", formatted=formatted)).text == response.text


@pytest.mark.shows("the same text as the library's own")
def test_complete_is_a_chat_unless_formatted(llm: ReAttentionLLM, engine: Engine) -> None:
    user = {"role": "user", "content": "fox"}
    assert llm.complete("fox").text == engine.generate([user], max_new_tokens=12).text
    assert llm.complete("fox", formatted=True).text == engine.generate("fox", max_new_tokens=12).text


def test_without_a_template_complete_continues_the_text(engine: Engine) -> None:
    engine.tokenizer.chat_template = None
    llm = ReAttentionLLM(engine=engine, max_tokens=12, completion_to_prompt=lambda prompt: f"The {prompt}")
    assert not llm.metadata.is_chat_model
    assert llm.complete("fox").text == engine.generate("The fox", max_new_tokens=12).text


@pytest.mark.shows("usage and cached tokens")
def test_usage_and_token_counter(llm: ReAttentionLLM) -> None:
    counter = TokenCountingHandler()
    llm.callback_manager = CallbackManager([counter])
    raw = llm.chat(ASKED).raw
    assert raw["finish_reason"] == "length"
    usage = raw["usage"]
    assert usage["completion_tokens"] == counter.completion_llm_token_count == 12
    assert usage["prompt_tokens"] == counter.prompt_llm_token_count > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    json.dumps(raw)


@pytest.mark.shows("settings of an instance and of a call, stop strings")
def test_call_settings(llm: ReAttentionLLM) -> None:
    text = llm.complete("fox").text
    stop = text[len(text) // 2 :][:3]
    assert llm.complete("fox", stop=stop).text == text[: text.index(stop)]
    assert llm.complete("fox", stop=[stop]).raw["finish_reason"] == "stop"
    assert llm.complete("fox", max_tokens=3).raw["usage"]["completion_tokens"] == 3
    hot = {"temperature": 5.0, "seed": 1}
    assert llm.complete("fox", **hot).text == llm.complete("fox", **hot).text != text
    assert llm.complete("fox", top_p=1e-6, **hot).text == text, "the likeliest token alone"
    own = ReAttentionLLM(engine=llm.engine, max_tokens=12, stop=stop)
    assert own.complete("fox").text == text[: text.index(stop)]
    assert own.complete("fox", stop=[]).text == text


@pytest.mark.shows("arguments that would have no effect are refused")
async def test_unknown_settings_are_named(llm: ReAttentionLLM, engine: Engine) -> None:
    with pytest.raises(
        InvalidConfigError, match=r"functions, max_new_tokens \(allowed: temperature, top_p, max_tokens"
    ):
        llm.chat(ASKED, functions=[{}], max_new_tokens=3)
    with pytest.raises(InvalidConfigError, match="temperatur"):
        await llm.acomplete("fox", temperatur=1)
    assert llm.complete("fox", tool_choice=None).text, "None means left out"
    with pytest.raises(ValidationError, match="temperatur"):
        ReAttentionLLM(temperatur=1)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        ReAttentionLLM(max_tokens=0)
    with pytest.raises(ValidationError, match="engine brings its own device"):
        ReAttentionLLM(engine=engine, device="cpu")


@pytest.mark.shows("messages and blocks, also those of other models")
def test_messages_that_cannot_be_read(llm: ReAttentionLLM) -> None:
    blocks = [TextBlock(text="What does"), TextBlock(text="the fox do?")]
    joined = ChatMessage(role="user", content="What does\nthe fox do?")
    assert llm.chat([ChatMessage(role="user", blocks=blocks)]).message == llm.chat([joined]).message
    with pytest.raises(InvalidRequestError, match="ImageBlock"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"1234")])])
    with pytest.raises(InvalidRequestError, match="no call before it waits for the id None"):
        llm.chat([ChatMessage(role="tool", content="4")])
    with pytest.raises(EmptyPromptError):
        llm.stream_complete("")


def test_neighbouring_messages_of_one_role_are_one(llm: ReAttentionLLM) -> None:
    split = [ChatMessage(role="user", content="What does"), ChatMessage(role="user", content="the fox do?")]
    joined = ChatMessage(role="user", content="What does\n\nthe fox do?")
    assert llm.chat(split).message == llm.chat([joined]).message


@pytest.mark.shows("the event loop is never blocked")
async def test_async_calls_leave_the_loop_free(llm: ReAttentionLLM, steps: Steps) -> None:
    steps.delay = 0.02

    async def astream() -> str:
        return "".join([chunk.delta or "" async for chunk in await llm.astream_chat(ASKED)])

    for call in (llm.achat(ASKED), llm.acomplete("fox"), astream()):
        _, ticks = await watched(call)
        assert ticks > 15, "12 tokens take 240 ms"


@pytest.mark.shows("errors of the model")
async def test_an_error_of_the_model_reaches_the_caller(llm: ReAttentionLLM, engine: Engine) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in the model")

    hook = engine.attachment.model.register_forward_pre_hook(fail)
    for call in (llm.chat, lambda asked: list(llm.stream_chat(asked))):
        with pytest.raises(ZeroDivisionError, match="in the model"):
            call(ASKED)
    with pytest.raises(ZeroDivisionError, match="in the model"):
        await llm.achat(ASKED)
    with pytest.raises(ZeroDivisionError, match="in the model"):
        [chunk async for chunk in await llm.astream_chat(ASKED)]
    hook.remove()
    assert llm.chat(ASKED).message.content


@pytest.mark.shows("closing and cancelling stop the model")
async def test_leaving_a_stream_stops_the_model(llm: ReAttentionLLM, steps: Steps) -> None:
    steps.delay = 0.02
    chunks = llm.stream_chat(ASKED, max_tokens=200)
    next(chunks)
    chunks.close()
    assert await stopped(steps)
    achunks = await llm.astream_chat(ASKED, max_tokens=200)
    await anext(achunks)
    await achunks.aclose()
    assert await stopped(steps)


@pytest.mark.shows("closing and cancelling stop the model")
@pytest.mark.parametrize("endpoint", ["achat", "astream_chat"])
async def test_cancelling_a_task_stops_the_model(llm: ReAttentionLLM, steps: Steps, endpoint: str) -> None:
    async def call() -> None:
        response = await getattr(llm, endpoint)(ASKED, max_tokens=200)
        if endpoint == "astream_chat":
            async for _ in response:
                pass

    steps.delay = 0.02
    task = asyncio.create_task(call())
    while steps.count < 5:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stopped(steps)
    steps.delay = 0
    assert llm.chat(ASKED).message.content


@pytest.mark.shows("many at once, batches")
async def test_many_at_once(llm: ReAttentionLLM) -> None:
    alone = [llm.complete(f"fox {i}").text for i in range(12)]
    together = await asyncio.gather(*(llm.acomplete(f"fox {i}") for i in range(12)))
    assert [response.text for response in together] == alone


@pytest.mark.shows("serialising holds no model")
def test_dict_and_json_hold_no_model(llm: ReAttentionLLM) -> None:
    data = json.loads(llm.to_json())
    assert "engine" not in data
    assert data["max_tokens"] == 12
    assert ReAttentionLLM.from_dict(data, engine=llm.engine).to_dict() == llm.to_dict()


@pytest.mark.shows("answers out of a corpus, with sources")
async def test_corpus_answers_carry_sources(engine: Engine, notes: str) -> None:
    llm = ReAttentionLLM(engine=engine, corpus=notes, max_tokens=12)
    expected = engine.open(notes).ask("What does the fox do?", max_new_tokens=12)
    question = ChatMessage(role="user", content="What does the fox do?")
    for raw in (llm.chat([question]).raw, (await llm.acomplete(question.content, formatted=True)).raw):
        assert raw["sources"] == [source.model_dump() for source in expected.sources] != []
        assert raw["usage"]["cached_tokens"] == expected.usage.cached_tokens > 0
        assert raw["usage"]["prompt_tokens"] == expected.usage.cached_tokens + expected.usage.prompt_tokens
    turns = [("Who?", "The fox."), ("What?", "It jumps.")]
    history = [
        ChatMessage(role=role, content=text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    expected = engine.open(notes).ask(question.content, history=turns, max_new_tokens=12)
    response = llm.chat([*history, question])
    assert response.message.content == expected.text
    assert [s["quote"] for s in response.raw["sources"]] == [s.quote for s in expected.sources]


@pytest.mark.shows("citations")
async def test_sources_are_citation_blocks_when_asked_for(engine: Engine, notes: str) -> None:
    question = [ChatMessage(role="user", content="What does the fox do?")]
    plain = ReAttentionLLM(engine=engine, corpus=notes, max_tokens=12).chat(question)
    llm = ReAttentionLLM(engine=engine, corpus=notes, max_tokens=12, citations=True)
    streamed = list(llm.stream_chat(question))[-1]
    astreamed = [chunk async for chunk in await llm.astream_chat(question)][-1]
    for response in (llm.chat(question), await llm.achat(question), streamed, astreamed):
        text, *cited = response.message.blocks
        assert text == plain.message.blocks[0] and len(plain.message.blocks) == 1
        assert all(isinstance(block, CitationBlock) for block in cited)
        assert [block.cited_content.text for block in cited] == [s["quote"] for s in plain.raw["sources"]] != []
        spans = [(s["start"], s["end"]) for s in plain.raw["sources"]]
        assert [tuple(block.additional_location_info.values()) for block in cited] == spans
        assert response.message.content == plain.message.content, "citations are no part of the text"
    history = [*question, llm.chat(question).message, *question]
    assert llm.chat(history).message.content, "what was cited before is not read again"


@pytest.mark.shows("answers out of a corpus, with sources")
def test_a_system_message_is_an_instruction_to_the_corpus(engine: Engine, notes: str) -> None:
    llm = ReAttentionLLM(engine=engine, corpus=notes, max_tokens=8)
    response = llm.chat(ASKED)
    expected = engine.open(notes).ask(str(ASKED[1].content), system="Be brief.", max_new_tokens=8)
    assert response.message.content == expected.text
    assert response.raw["sources"] == [source.model_dump() for source in expected.sources] != []
    assert response.raw["usage"]["prompt_tokens"] > llm.chat(ASKED[1:]).raw["usage"]["prompt_tokens"]


def test_questions_that_a_corpus_cannot_take(engine: Engine, notes: str) -> None:
    llm = ReAttentionLLM(engine=engine, corpus=notes)
    with pytest.raises(InvalidRequestError, match="got user, assistant"):
        llm.chat([ASKED[1], ChatMessage(role="assistant", content="It jumps.")])
    llm.corpus = "nothing"
    with pytest.raises(CorpusNotFoundError, match="notes"):
        llm.complete("Who?")
    llm.corpus = None
    assert llm.complete("Who?").raw["sources"] == []


@pytest.mark.shows("what the framework plans with")
def test_settings_and_what_the_framework_builds_on_them(llm: ReAttentionLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    Settings.llm = llm
    assert Settings.llm.complete("fox").text == llm.complete("fox").text
    assert Settings.llm.predict(PromptTemplate("The {animal}"), animal="fox")
    assert "".join(Settings.llm.stream(PromptTemplate("The {animal}"), animal="fox")) == llm.complete("The fox").text


@pytest.mark.shows("what the framework plans with")
def test_the_framework_counts_with_the_models_tokenizer_on_request(
    llm: ReAttentionLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index.core.global_tokenizer", None)
    ReAttentionLLM(engine=llm.engine)
    assert llama_index.core.global_tokenizer is None, "nobody asked"
    Settings.tokenizer = llm.tokenizer
    ids = llm.engine.tokens.encode("What does the fox do?").ids
    assert Settings.tokenizer("What does the fox do?") == ids
    assert TokenCounter().get_string_tokens("What does the fox do?") == len(ids)


class Seen(BaseEventHandler):
    """Keeps the events of instrumentation."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


@pytest.mark.shows("callbacks, instrumentation, events")
async def test_instrumentation_sees_every_call(llm: ReAttentionLLM) -> None:
    seen, root = Seen(), get_dispatcher()
    root.add_event_handler(seen)
    try:
        text = llm.chat(ASKED).message.content
        assert [type(event) for event in seen.events] == [LLMChatStartEvent, LLMChatEndEvent]
        start, end = seen.events
        assert start.model_dict["model_name"] == "llama" and end.response.message.content == text
        json.dumps(start.model_dict)
        seen.events.clear()
        [chunk async for chunk in await llm.astream_chat(ASKED)]
        kinds = [type(event) for event in seen.events]
        assert (kinds[0], kinds[-1]) == (LLMChatStartEvent, LLMChatEndEvent)
        assert set(kinds[1:-1]) == {LLMChatInProgressEvent} and len(kinds) > 5
        seen.events.clear()
        with pytest.raises(InvalidConfigError):
            await llm.achat(ASKED, temperatur=1)
        assert [type(event) for event in seen.events] == [LLMChatStartEvent, SpanDropEvent], "and no end"
    finally:
        root.event_handlers.remove(seen)


@pytest.mark.shows("callbacks, instrumentation, events", "callbacks that raise")
async def test_callbacks_see_every_call_and_may_fail(llm: ReAttentionLLM) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([debug])
    llm.chat(ASKED)
    [chunk async for chunk in await llm.astream_complete("fox")]
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 2

    class Failing(LlamaDebugHandler):
        def on_event_end(self, *_: Any, **__: Any) -> None:
            raise ZeroDivisionError("in the callback")

    llm.callback_manager = CallbackManager([Failing(print_trace_on_end=False)])
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        llm.chat(ASKED)
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        await llm.achat(ASKED)
    llm.callback_manager = CallbackManager([])
    assert llm.chat(ASKED).message.content, "the model is free again"


def test_a_closed_engine_says_so(engine: Engine, llm: ReAttentionLLM) -> None:
    engine.close()
    with pytest.raises(EngineClosedError):
        llm.complete("fox")


@pytest.mark.shows("weights are loaded late and shared")
def test_making_one_is_instant_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    began = time.perf_counter()
    llms = [ReAttentionLLM(model="some/model", corpus="notes") for _ in range(50)]
    assert time.perf_counter() - began < 0.5
    assert llms[0].class_name() == "ReAttentionLLM"


@pytest.mark.shows("weights are loaded late and shared")
def test_the_bundled_model_knows_paris_and_is_loaded_once() -> None:
    first, second = ReAttentionLLM(max_tokens=12), ReAttentionLLM(max_tokens=12, stop=["\n"])
    assert first.metadata.is_chat_model
    assert "Paris" in first.complete("What is the capital of France? Answer:").text
    assert "Paris" in second.complete("The capital of France is", formatted=True).text
    assert first._engine() is second._engine() is shared_engine()
