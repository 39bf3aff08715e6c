"""LangChain: tools, structured output, citations and agents, over a tiny model that a script leads."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from langchain_reattention import ChatReAttention
from reattention_core import Engine
from reattention_core.errors import IncompleteAnswerError, InvalidConfigError, InvalidRequestError
from tests.scripted import Script, call, scripted


class Point(BaseModel):
    """A place."""

    x: int = Field(ge=0, le=99)
    on: bool


class PointDict(TypedDict):
    """A place."""

    x: int
    on: Annotated[bool, ..., "whether"]


@tool
def draw(x: int, on: bool) -> str:
    """Draw at x."""
    return f"drawn at {x}"


@tool
def wipe() -> str:
    """Wipe all."""
    return "wiped"


POINT = '{"x": 7, "on": true}'


@pytest.fixture
def chat(engine: Engine) -> ChatReAttention:
    return ChatReAttention(engine=engine, max_tokens=150)


@pytest.fixture
def says(engine: Engine) -> Iterator[Script]:
    with scripted(engine) as script:
        yield script


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first, *rest = chunks
    return sum(rest, first)


@pytest.mark.shows("tools")
async def test_all_ways_of_asking_give_the_same_calls(chat: ChatReAttention, says: Script) -> None:
    model = chat.bind_tools([draw, wipe], parallel_tool_calls=True)
    text = call("draw", POINT, "Well:\n") + "\n" + call("wipe", "{}")
    for way in range(4):
        says(text)
        if way == 0:
            message = model.invoke("Go.")
        elif way == 1:
            message = await model.ainvoke("Go.")
        elif way == 2:
            message = added(list(model.stream("Go.")))
        else:
            message = added([chunk async for chunk in model.astream("Go.")])
        assert message.text == "Well:\n"
        assert [(made["name"], made["args"]) for made in message.tool_calls] == [
            ("draw", json.loads(POINT)),
            ("wipe", {}),
        ]
        assert len({made["id"] for made in message.tool_calls}) == 2
        assert message.response_metadata["finish_reason"] == "tool_calls"
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["text", "tool_call", "tool_call"]


@pytest.mark.shows("tools")
@pytest.mark.parametrize(
    ("choice", "bound"),
    [
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("draw", "draw"),
        ({"type": "function", "function": {"name": "draw"}}, "draw"),
        ({"type": "tool", "name": "wipe"}, "wipe"),
        (False, None),
        (None, None),
    ],
)
def test_every_form_of_tool_choice(chat: ChatReAttention, choice: Any, bound: str | None) -> None:
    model = chat.bind_tools([draw, wipe], tool_choice=choice)
    assert isinstance(model, RunnableBinding)
    assert model.kwargs.get("tool_choice") == bound
    if bound in ("required", "draw", "wipe"):
        (made,) = model.invoke("Go.").tool_calls
        assert made["name"] in {"required": ("draw", "wipe")}.get(bound, (bound,))


def test_a_tool_choice_that_is_none(chat: ChatReAttention) -> None:
    with pytest.raises(InvalidConfigError, match="'paint' is none of 'auto', 'any', 'none' and the tools: draw"):
        chat.bind_tools([draw], tool_choice="paint")
    with pytest.raises(InvalidRequestError, match="corpus calls no tools"):
        chat.engine.ingest("The fox.", name="notes", progress=False)
        ChatReAttention(engine=chat.engine, corpus="notes").bind_tools([draw]).invoke("Go.")


@pytest.mark.shows("tools")
def test_calls_and_results_come_back_to_the_model(chat: ChatReAttention, engine: Engine) -> None:
    asked = [
        SystemMessage("Be brief."),
        HumanMessage("Go."),
        AIMessage(
            [{"type": "text", "text": "Well."}, {"type": "tool_use", "id": "a", "name": "draw", "input": {}}],
            tool_calls=[{"name": "draw", "args": {"x": 7}, "id": "a"}],
        ),
        ToolMessage("drawn", tool_call_id="a"),
    ]
    function = {"name": "draw", "arguments": {"x": 7}}
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Well.", "tool_calls": [{"id": "a", "function": function}]},
        {"role": "tool", "content": "drawn", "tool_call_id": "a"},
    ]
    assert chat.invoke(asked, max_tokens=12).content == engine.generate(plain, max_new_tokens=12).text


@pytest.mark.shows("structured output")
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("strict", [None, True, False])
def test_objects_of_every_kind_of_schema(chat: ChatReAttention, method: str, strict: bool | None) -> None:
    made = chat.with_structured_output(Point, method=method, strict=strict).invoke("Where?")
    assert isinstance(made, Point)
    for schema in (PointDict, Point.model_json_schema()):
        data = chat.with_structured_output(schema, method=method).invoke("Where?")
        assert isinstance(data["x"], int) and isinstance(data["on"], bool) and len(data) == 2


@pytest.mark.shows("structured output")
async def test_objects_grow_in_a_stream(chat: ChatReAttention, says: Script) -> None:
    model = chat.with_structured_output(PointDict)
    says(POINT)
    parts = list(model.stream("Where?"))
    assert parts[-1] == {"x": 7, "on": True} and len(parts) > 2
    says(POINT)
    assert [part async for part in model.astream("Where?")] == parts


@pytest.mark.shows("structured output")
def test_the_raw_message_and_what_went_wrong(chat: ChatReAttention, says: Script) -> None:
    class Odd(BaseModel):
        x: int

        def model_post_init(self, _: Any) -> None:
            if self.x % 2 == 0:
                raise ValueError("even")

    for method in ("json_schema", "function_calling"):
        model = chat.with_structured_output(Odd, method=method, include_raw=True)
        says('{"x": 7}' if method == "json_schema" else call("Odd", '{"x": 7}'))
        made = model.invoke("Which?")
        assert (made["parsed"].x, made["parsing_error"]) == (7, None)
        assert isinstance(made["raw"], AIMessage)
        says('{"x": 8}' if method == "json_schema" else call("Odd", '{"x": 8}'))
        made = model.invoke("Which?")
        assert made["parsed"] is None and "even" in str(made["parsing_error"])


@pytest.mark.shows("structured output")
async def test_a_cut_object_is_an_error_everywhere(chat: ChatReAttention, says: Script) -> None:
    model = chat.bind(max_tokens=5).bind(
        response_format={"type": "json_schema", "json_schema": {"schema": Point.model_json_schema()}}
    )
    for way in range(4):
        says(POINT)
        with pytest.raises(IncompleteAnswerError, match="in the middle of its JSON"):
            if way == 0:
                model.invoke("Where?")
            elif way == 1:
                await model.ainvoke("Where?")
            elif way == 2:
                list(model.stream("Where?"))
            else:
                [chunk async for chunk in model.astream("Where?")]


@pytest.mark.shows("arguments that would have no effect are refused")
def test_forms_of_answers_and_arguments_that_are_unknown(chat: ChatReAttention) -> None:
    assert (
        json.loads(
            chat.invoke(
                "Where?", response_format={"type": "json_schema", "json_schema": {"schema": {"const": 1}}}
            ).content
        )
        == 1
    )
    assert chat.invoke("Where?", response_format={"type": "text"}, max_tokens=5).content
    with pytest.raises(InvalidConfigError, match="response_format is 'json'"):
        chat.invoke("Where?", response_format="json")
    with pytest.raises(InvalidConfigError, match="method 'xml' is unknown"):
        chat.with_structured_output(Point, method="xml")
    with pytest.raises(InvalidConfigError, match="arguments of with_structured_output: tols"):
        chat.with_structured_output(Point, tols=[])


@pytest.mark.shows("citations")
async def test_sources_are_citations_of_the_text(engine: Engine) -> None:
    engine.ingest(["The quick brown fox jumps. " * 5, "A cache keeps the keys. " * 5], name="notes", progress=False)
    for version in ("v0", "v1"):
        chat = ChatReAttention(engine=engine, corpus="notes", max_tokens=8, output_version=version)
        streamed = added(list(chat.stream("What does the fox do?")))
        astreamed = added([chunk async for chunk in chat.astream("What does the fox do?")])
        for message in (chat.invoke("What does the fox do?"), streamed, astreamed):
            (block,) = message.content_blocks
            sources = message.response_metadata["sources"]
            assert block["type"] == "text" and block["text"] == message.text != ""
            assert (
                [note["cited_text"] for note in block["annotations"]] == [source["quote"] for source in sources] != []
            )
            assert block["annotations"][0]["extras"]["score"] == sources[0]["score"] > 0
            assert isinstance(message.content, str) == (version == "v0")


@pytest.mark.shows("structured output")
def test_a_question_to_a_corpus_may_ask_for_an_object(engine: Engine) -> None:
    engine.ingest("The quick brown fox jumps over the lazy dog. " * 5, name="notes", progress=False)
    chat = ChatReAttention(engine=engine, corpus="notes", max_tokens=60)
    made = chat.with_structured_output(Point, include_raw=True).invoke("Where?")
    assert isinstance(made["parsed"], Point)
    assert made["raw"].response_metadata["sources"]


@pytest.mark.shows("caches")
def test_remembered_answers_know_what_was_in_the_corpus(engine: Engine) -> None:
    chat = ChatReAttention(engine=engine, corpus="notes")
    assert chat._identifying_params["corpus_digest"] is None
    seen = []
    for text in ("The fox is red.", "The fox is blue."):
        engine.ingest(text, name="notes", replace=True, progress=False)
        seen.append(chat._identifying_params["corpus_digest"])
        engine.open("notes").ask("Who?")
        assert chat._identifying_params["corpus_digest"] == seen[-1], "questions change nothing"
    engine.open("notes").add("The dog is grey.", progress=False)
    assert len({*seen, chat._identifying_params["corpus_digest"]}) == 3


@pytest.mark.shows("agents")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agent_calls_its_tools(chat: ChatReAttention, says: Script, asynchronous: bool) -> None:
    agent = create_agent(chat, [draw, wipe], system_prompt="Be brief.")
    says(call("draw", POINT), call("wipe", "{}", "Now:\n"), "All done.")
    asked: Any = {"messages": [{"role": "user", "content": "Go."}]}
    messages = (await agent.ainvoke(asked) if asynchronous else agent.invoke(asked))["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert [messages[i].content for i in (2, 4, 5)] == ["drawn at 7", "wiped", "All done."]
    assert says.said == 3


@pytest.mark.shows("agents")
@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy, lambda schema: schema])
def test_an_agent_calls_its_tools_and_answers_with_an_object(
    chat: ChatReAttention, says: Script, strategy: Any
) -> None:
    agent = create_agent(chat, [wipe], response_format=strategy(Point))
    says(call("wipe", "{}"), call("Point", POINT) if strategy is ToolStrategy else POINT)
    state = agent.invoke({"messages": [{"role": "user", "content": "Go."}]})
    assert state["structured_response"] == Point(x=7, on=True)
    assert "wiped" in [message.content for message in state["messages"]]


@pytest.mark.shows("many at once, batches")
async def test_batches_of_calls(chat: ChatReAttention) -> None:
    model = chat.bind_tools([draw, wipe], tool_choice="any")
    for messages in (model.batch(["a", "b", "c"]), await model.abatch(["a", "b", "c"])):
        assert [len(message.tool_calls) for message in messages] == [1, 1, 1]


@pytest.mark.shows("fallbacks")
def test_another_model_takes_over_where_one_fails(chat: ChatReAttention, says: Script) -> None:
    says(POINT, POINT)
    short = chat.model_copy(update={"max_tokens": 3}).with_structured_output(Point)
    made = short.with_fallbacks([chat.with_structured_output(Point)]).invoke("Where?")
    assert made == Point(x=7, on=True)


@pytest.mark.shows("callbacks, instrumentation, events")
async def test_events_name_the_calls(chat: ChatReAttention, says: Script) -> None:
    says(call("draw", POINT))
    events = [event async for event in chat.bind_tools([draw]).astream_events("Go.", version="v2")]
    (end,) = [event for event in events if event["event"] == "on_chat_model_end"]
    assert end["data"]["output"].tool_calls[0]["name"] == "draw"
