"""LangChain: invoke, stream, batch and their async forms over a tiny model, and one question to the bundled one."""

import asyncio
import json
import time
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, FunctionMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from langchain_reattention import ChatReAttention
from reattention_core import Engine
from reattention_core.errors import CorpusNotFoundError, EmptyPromptError, InvalidConfigError, InvalidRequestError
from reattention_core.frameworks.shared import shared_engine
from tests.frameworks.conftest import Steps, stopped, watched

ASKED = [SystemMessage("Be brief."), HumanMessage("What does the fox do?")]


@pytest.fixture
def chat(engine: Engine) -> ChatReAttention:
    return ChatReAttention(engine=engine, max_tokens=12)


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


@pytest.mark.shows("answers, whole and streamed, also asynchronous")
async def test_all_ways_of_asking_give_the_same_answer(chat: ChatReAttention) -> None:
    message = chat.invoke(ASKED)
    assert message.content
    assert (await chat.ainvoke(ASKED)).content == message.content
    for chunks in (list(chat.stream(ASKED)), [chunk async for chunk in chat.astream(ASKED)]):
        assert len(chunks) > 3
        whole = added(chunks)
        assert whole.content == message.content
        assert whole.usage_metadata == message.usage_metadata
        assert whole.response_metadata == message.response_metadata
        assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.shows("usage and cached tokens")
def test_what_comes_with_an_answer(chat: ChatReAttention) -> None:
    message = chat.invoke(ASKED)
    assert message.response_metadata == {
        "model_name": "llama",
        "model_provider": "reattention",
        "finish_reason": "length",
    }
    usage = message.usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == 12
    assert usage["input_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + 12
    assert usage["input_token_details"] == {"cache_read": 0, "cache_creation": 0}


@pytest.mark.shows("callbacks, instrumentation, events")
async def test_new_tokens_reach_callbacks_once(chat: ChatReAttention) -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []

        def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            self.tokens.append(token)

    for asynchronous in (False, True):
        tokens = Tokens()
        config = {"callbacks": [tokens]}
        if asynchronous:
            text = "".join([chunk.content async for chunk in chat.astream("fox", config)])
        else:
            text = "".join(chunk.content for chunk in chat.stream("fox", config))
        assert "".join(tokens.tokens) == text
    # The bridge to the newer events hands over its manager, and then nobody else reports the tokens.
    events = [event async for event in chat.astream_events("fox", version="v2")]
    parts = [event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(parts) == text


@pytest.mark.shows("chains", "many at once, batches")
async def test_in_a_chain_and_in_batches(chat: ChatReAttention) -> None:
    chain = ChatPromptTemplate([("system", "Be brief."), ("human", "{question}")]) | chat | StrOutputParser()
    questions = [{"question": f"What does fox {i} do?"} for i in range(8)]
    alone = [chain.invoke(question) for question in questions]
    assert alone[0] == chat.invoke([ASKED[0], HumanMessage("What does fox 0 do?")]).content
    assert chain.batch(questions) == alone
    assert await chain.abatch(questions) == alone
    assert "".join(chain.stream(questions[0])) == alone[0]


@pytest.mark.shows("settings of an instance and of a call, stop strings")
async def test_call_settings(chat: ChatReAttention) -> None:
    text = chat.invoke("fox").content
    assert isinstance(text, str)
    stop = text[len(text) // 2 :][:3]
    short = chat.invoke("fox", stop=[stop])
    assert short.content == text[: text.index(stop)]
    assert short.response_metadata["finish_reason"] == "stop"
    assert "".join([chunk.content async for chunk in chat.bind(stop=[stop]).astream("fox")]) == short.content
    assert chat.invoke("fox", max_tokens=3).usage_metadata["output_tokens"] == 3
    hot = {"temperature": 5.0, "seed": 1}
    assert chat.invoke("fox", **hot).content == chat.invoke("fox", **hot).content != text
    assert chat.invoke("fox", top_p=1e-6, **hot).content == text, "the likeliest token alone"
    own = ChatReAttention(engine=chat.engine, max_tokens=12, stop_sequences=stop)
    assert own.invoke("fox").content == short.content
    assert chat.invoke("fox", stream=True).content == text
    configurable = chat.configurable_fields(max_tokens=ConfigurableField(id="longest"))
    message = configurable.invoke("fox", {"configurable": {"longest": 3}})
    assert message.usage_metadata["output_tokens"] == 3


@pytest.mark.shows("arguments that would have no effect are refused")
async def test_unknown_settings_are_named(chat: ChatReAttention, engine: Engine) -> None:
    with pytest.raises(InvalidConfigError, match=r"functions, n \(allowed: temperature, top_p"):
        chat.invoke("fox", functions=[{}], n=2)
    with pytest.raises(InvalidConfigError, match="temperatur"):
        await chat.ainvoke("fox", temperatur=1)
    assert chat.invoke("fox", tool_choice=None).content, "None means left out"
    with pytest.raises(ValidationError, match="temperatur"):
        ChatReAttention(temperatur=1)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        ChatReAttention(max_tokens=0)
    with pytest.raises(ValidationError, match="engine brings its own strategy"):
        ChatReAttention(engine=engine, strategy="longheads")


@pytest.mark.shows("messages and blocks, also those of other models")
def test_messages_that_cannot_be_read(chat: ChatReAttention) -> None:
    with pytest.raises(InvalidRequestError, match=r"no call before it waits for the id '1'"):
        chat.invoke([*ASKED, ToolMessage("4", tool_call_id="1")])
    with pytest.raises(InvalidRequestError, match="FunctionMessage is not supported"):
        chat.invoke([*ASKED, FunctionMessage("4", name="add")])
    with pytest.raises(InvalidRequestError, match="'image_url'"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "file:fox.png"}}])])
    with pytest.raises(EmptyPromptError):
        chat.invoke("")


@pytest.mark.shows("messages and blocks, also those of other models")
def test_text_blocks_and_neighbouring_messages_are_joined(chat: ChatReAttention, engine: Engine) -> None:
    messages = [
        SystemMessage("Be brief."),
        SystemMessage("Be kind."),
        HumanMessage([{"type": "text", "text": "What does "}, "the fox do?"]),
        HumanMessage("And why?"),
        AIMessage("It jumps."),
        AIMessage("Over the dog."),
        HumanMessage("Who?"),
    ]
    plain = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "What does the fox do?\n\nAnd why?"},
        {"role": "assistant", "content": "It jumps.\n\nOver the dog."},
        {"role": "user", "content": "Who?"},
    ]
    assert chat.invoke(messages).content == engine.generate(plain, max_new_tokens=12).text


@pytest.mark.shows("the event loop is never blocked")
async def test_async_calls_leave_the_loop_free(chat: ChatReAttention, steps: Steps) -> None:
    async def astream() -> str:
        return "".join([chunk.content async for chunk in chat.astream("fox")])

    steps.delay = 0.02
    for call in (chat.ainvoke("fox"), astream()):
        _, ticks = await watched(call)
        assert ticks > 15, "12 tokens take 240 ms"


@pytest.mark.shows("errors of the model")
async def test_an_error_of_the_model_reaches_the_caller(chat: ChatReAttention, engine: Engine) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in the model")

    hook = engine.attachment.model.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in the model"):
        chat.invoke("fox")
    with pytest.raises(ZeroDivisionError, match="in the model"):
        list(chat.stream("fox"))
    with pytest.raises(ZeroDivisionError, match="in the model"):
        await chat.ainvoke("fox")
    with pytest.raises(ZeroDivisionError, match="in the model"):
        [chunk async for chunk in chat.astream("fox")]
    hook.remove()
    assert chat.invoke("fox").content


@pytest.mark.shows("closing and cancelling stop the model")
async def test_leaving_a_stream_stops_the_model(chat: ChatReAttention, steps: Steps) -> None:
    steps.delay = 0.02
    chunks = chat.stream("fox", max_tokens=200)
    next(chunks)
    chunks.close()
    assert await stopped(steps)
    achunks = chat.astream("fox", max_tokens=200)
    await anext(achunks)
    await achunks.aclose()
    assert await stopped(steps)


@pytest.mark.shows("closing and cancelling stop the model")
@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelling_a_task_stops_the_model(chat: ChatReAttention, steps: Steps, streaming: bool) -> None:
    async def call() -> None:
        if streaming:
            async for _ in chat.astream("fox", max_tokens=200):
                pass
        else:
            await chat.ainvoke("fox", max_tokens=200)

    steps.delay = 0.02
    task = asyncio.create_task(call())
    while steps.count < 5:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stopped(steps)
    steps.delay = 0
    assert chat.invoke("fox").content


@pytest.mark.shows("answers out of a corpus, with sources")
async def test_corpus_answers_carry_sources(engine: Engine, notes: str) -> None:
    chat = ChatReAttention(engine=engine, corpus=notes, max_tokens=12)
    turns = [("Who?", "The fox."), ("What?", "It jumps.")]
    expected = engine.open(notes).ask("Why?", history=turns, max_new_tokens=12)
    history = [kind(text) for turn in turns for kind, text in zip((HumanMessage, AIMessage), turn, strict=True)]
    asked = [*history, HumanMessage("Why?")]
    streamed = added([chunk async for chunk in chat.astream(asked)])
    for message in (chat.invoke(asked), await chat.ainvoke(asked), streamed):
        assert message.content == expected.text
        assert message.response_metadata["sources"] == [source.model_dump() for source in expected.sources] != []
        usage = message.usage_metadata
        assert usage is not None
        assert usage["input_token_details"]["cache_read"] == expected.usage.cached_tokens > 0
        assert usage["input_tokens"] == expected.usage.cached_tokens + expected.usage.prompt_tokens


@pytest.mark.shows("answers out of a corpus, with sources")
def test_a_system_message_is_an_instruction_to_the_corpus(engine: Engine, notes: str) -> None:
    chat = ChatReAttention(engine=engine, corpus=notes, max_tokens=8)
    prompt = ChatPromptTemplate([("system", "Be brief."), ("placeholder", "{history}"), ("human", "{question}")])
    history = [HumanMessage("Who?"), AIMessage("The fox.")]
    message = (prompt | chat).invoke({"question": "Why?", "history": [*history, SystemMessage("Be kind.")]})
    open_corpus = engine.open(notes)
    expected = open_corpus.ask("Why?", history=[("Who?", "The fox.")], system="Be brief.\n\nBe kind.", max_new_tokens=8)
    assert message.content == expected.text
    assert message.response_metadata["sources"] == [source.model_dump() for source in expected.sources] != []
    plain = chat.invoke([*history, HumanMessage("Why?")])
    assert message.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"]


def test_questions_that_a_corpus_cannot_take(engine: Engine, notes: str) -> None:
    chat = ChatReAttention(engine=engine, corpus=notes)
    with pytest.raises(InvalidRequestError, match="got user, assistant"):
        chat.invoke([ASKED[1], AIMessage("It jumps.")])
    with pytest.raises(CorpusNotFoundError, match="notes"):
        ChatReAttention(engine=engine, corpus="nothing").invoke("Who?")


@pytest.mark.shows("caches")
def test_a_cache_tells_corpora_and_settings_apart(engine: Engine, notes: str) -> None:
    engine.ingest("The dog sleeps all day long. " * 3, name="other", progress=False)
    cache = InMemoryCache()
    with_notes = ChatReAttention(engine=engine, corpus=notes, max_tokens=8, cache=cache)
    with_other = ChatReAttention(engine=engine, corpus="other", max_tokens=8, cache=cache)
    first = with_notes.invoke("Who?")
    assert with_other.invoke("Who?").response_metadata["sources"] != first.response_metadata["sources"]
    assert with_notes.invoke("Who?", max_tokens=2).usage_metadata["output_tokens"] == 2
    assert with_notes.invoke("Who?").content == first.content
    assert set(with_notes._identifying_params) >= {"model", "corpus", "strategy", "temperature", "stop", "seed"}


@pytest.mark.shows("caches")
async def test_a_cache_serves_async_calls_and_streams_are_not_kept(chat: ChatReAttention, steps: Steps) -> None:
    cached = ChatReAttention(engine=chat.engine, max_tokens=12, cache=InMemoryCache())
    first = await cached.ainvoke("fox")
    assert first.content == chat.invoke("fox").content
    steps.count = 0
    assert (await cached.ainvoke("fox")).content == cached.invoke("fox").content == first.content
    assert steps.count == 0, "the model is not asked again"
    assert "".join(chunk.content for chunk in cached.stream("fox")) == first.content and steps.count > 0


@pytest.mark.shows("callbacks that raise")
@pytest.mark.parametrize("when", ["on_chat_model_start", "on_llm_new_token", "on_llm_end"])
async def test_a_callback_that_raises(chat: ChatReAttention, steps: Steps, when: str) -> None:
    class Failing(BaseCallbackHandler):
        def __init__(self, raise_error: bool) -> None:
            self.raise_error = raise_error

        def __getattribute__(self, name: str) -> Any:
            return fail if name == when else super().__getattribute__(name)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("in the callback")

    steps.delay = 0.01
    for raises in (False, True):
        config: Any = {"callbacks": [Failing(raises)]}
        ways = [lambda c=config: list(chat.stream("fox", c)), lambda c=config: chat.invoke("fox", c)]
        for way in ways[: 1 if when == "on_llm_new_token" else 2]:
            if raises:
                with pytest.raises(ZeroDivisionError, match="in the callback"):
                    way()
            else:
                assert way(), "who only watches does no harm"
        if raises:
            with pytest.raises(ZeroDivisionError, match="in the callback"):
                [chunk async for chunk in chat.astream("fox", config)]
            assert await stopped(steps)
    assert chat.invoke("fox").content, "the model is free again"


@pytest.mark.shows("what the framework plans with", "serialising holds no model")
def test_what_the_framework_asks_about_the_model(chat: ChatReAttention, engine: Engine) -> None:
    params = chat._get_ls_params(stop=["x"])
    assert (params["ls_provider"], params["ls_model_name"], params["ls_model_type"]) == ("reattention", "llama", "chat")
    assert (params["ls_max_tokens"], params["ls_stop"]) == (12, ["x"])
    assert ChatReAttention(engine=engine, stop="y")._get_ls_params()["ls_stop"] == ["y"]
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] > 1_000_000, "a tiny model"
    assert chat.get_num_tokens("What does the fox do?") == len(engine.tokens.encode("What does the fox do?").ids)
    assert ChatReAttention(model_name="some/model").model == "some/model"
    assert "Engine" not in json.dumps(chat.asdict()) + repr(chat)


@pytest.mark.shows("weights are loaded late and shared")
def test_making_one_is_instant_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    began = time.perf_counter()
    for _ in range(50):
        ChatReAttention(model="some/model", corpus="notes")
    assert time.perf_counter() - began < 0.5


@pytest.mark.shows("weights are loaded late and shared")
async def test_the_bundled_model_knows_paris_and_is_loaded_once() -> None:
    first, second = ChatReAttention(max_tokens=12), ChatReAttention(max_tokens=12, stop=["\n"])
    assert "Paris" in first.invoke("What is the capital of France? Answer:").content
    assert "Paris" in (await second.ainvoke("What is the capital of France?")).content
    assert first._engine() is second._engine() is shared_engine()
