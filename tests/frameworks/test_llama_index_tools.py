"""LlamaIndex: tools, structured prediction, agents and engines, over a tiny model that a script leads."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.tools import FunctionTool, QueryEngineTool
from pydantic import BaseModel, Field

from llama_index.indices.reattention import ReAttentionIndex
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Engine
from reattention_core.errors import IncompleteAnswerError, InvalidConfigError
from tests.frameworks.conftest import Steps, watched
from tests.scripted import Script, call, scripted

pytestmark = [
    pytest.mark.usefixtures("left_open_here"),
    # The framework's own use of pydantic, and the memory of its agents, which leaves a database open.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning"),
]


ASKED = [ChatMessage(role="user", content="Go.")]
POINT = '{"x": 7, "on": true}'


class Point(BaseModel):
    """A place."""

    x: int = Field(ge=0, le=99)
    on: bool


def draw(x: int, on: bool) -> str:
    """Draw at x."""
    return f"drawn at {x}"


def wipe() -> str:
    """Wipe all."""
    return "wiped"


TOOLS = [FunctionTool.from_defaults(draw), FunctionTool.from_defaults(wipe)]
BOTH = call("draw", POINT, "Well:\n") + "\n" + call("wipe", "{}")


@pytest.fixture
def llm(engine: Engine) -> ReAttentionLLM:
    engine.attachment.model.generation_config.eos_token_id = engine.tokenizer.eos_token_id
    return ReAttentionLLM(engine=engine, max_tokens=150)


@pytest.fixture
def says(engine: Engine) -> Iterator[Script]:
    with scripted(engine) as script:
        yield script


@pytest.mark.shows("tools")
async def test_all_ways_of_asking_give_the_same_calls(llm: ReAttentionLLM, says: Script) -> None:
    for way in range(4):
        says(BOTH)
        asked: dict[str, Any] = {"tools": TOOLS, "user_msg": "Go.", "allow_parallel_tool_calls": True}
        if way == 0:
            response = llm.chat_with_tools(**asked)
        elif way == 1:
            response = await llm.achat_with_tools(**asked)
        elif way == 2:
            *before, response = llm.stream_chat_with_tools(**asked)
            assert not any(llm.get_tool_calls_from_response(part, error_on_no_tool_call=False) for part in before)
        else:
            response = [part async for part in await llm.astream_chat_with_tools(**asked)][-1]
        assert response.message.content == "Well:\n"
        selected = llm.get_tool_calls_from_response(response)
        assert [(one.tool_name, one.tool_kwargs) for one in selected] == [("draw", json.loads(POINT)), ("wipe", {})]
        assert response.raw["finish_reason"] == "tool_calls"


@pytest.mark.shows("tools")
def test_how_many_calls_and_whether_there_must_be_one(llm: ReAttentionLLM, says: Script) -> None:
    says(BOTH)
    assert len(llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, "Go."))) == 1
    says("No.")
    response = llm.chat_with_tools(TOOLS, "Go.")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"expected a call of a tool, but the model said 'No\.'"):
        llm.get_tool_calls_from_response(response)
    for choice in ({"tool_required": True}, {"tool_required": True, "tool_choice": None}, {"tool_choice": "any"}):
        says("No.")
        assert llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, "Go.", **choice))
    for named in ("wipe", {"type": "function", "function": {"name": "wipe"}}):
        (one,) = llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, "Go.", tool_choice=named))
        assert one.tool_name == "wipe"
    with pytest.raises(InvalidConfigError, match="'paint' is no tool"):
        llm.chat_with_tools(TOOLS, "Go.", tool_choice="paint")
    says("No.")
    assert llm.chat_with_tools([], "Go.").message.content == "No."


@pytest.mark.shows("tools")
def test_predict_and_call(llm: ReAttentionLLM, says: Script) -> None:
    says(call("draw", POINT))
    assert llm.predict_and_call(TOOLS, "Go.").response == "drawn at 7"


@pytest.mark.shows("tools")
def test_calls_and_results_come_back_to_the_model(llm: ReAttentionLLM, engine: Engine) -> None:
    blocks = [
        ThinkingBlock(content="Hm."),
        TextBlock(text="Well."),
        ToolCallBlock(tool_call_id="a", tool_name="draw", tool_kwargs='{"x": 7}'),
    ]
    asked = [
        *ASKED,
        ChatMessage(role="assistant", blocks=blocks),
        ChatMessage(role="tool", content="drawn", additional_kwargs={"tool_call_id": "a"}),
    ]
    function = {"name": "draw", "arguments": {"x": 7}}
    plain = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Well.", "tool_calls": [{"id": "a", "function": function}]},
        {"role": "tool", "content": "drawn", "tool_call_id": "a"},
    ]
    assert llm.chat(asked, max_tokens=12).message.content == engine.generate(plain, max_new_tokens=12).text


@pytest.mark.shows("messages and blocks, also those of other models")
def test_blocks_of_other_models_do_not_matter(llm: ReAttentionLLM) -> None:
    blocks = [
        CitableBlock(title="Notes", source="notes.txt", content=[TextBlock(text="The fox jumps.")]),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        TextBlock(text="Why?"),
    ]
    plain = ChatMessage(role="user", content="Notes\nThe fox jumps.\nWhy?")
    asked = [ChatMessage(role="user", blocks=blocks)]
    assert llm.chat(asked, max_tokens=12).message == llm.chat([plain], max_tokens=12).message


@pytest.mark.shows("structured output")
async def test_structured_prediction_in_all_its_forms(llm: ReAttentionLLM, says: Script) -> None:
    prompt, point = PromptTemplate("Where is {what}?"), Point(x=7, on=True)
    says(*[POINT] * 4)
    assert llm.structured_predict(Point, prompt, what="it") == point
    assert await llm.astructured_predict(Point, prompt, what="it") == point
    parts = list(llm.stream_structured_predict(Point, prompt, what="it"))
    assert parts[-1] == point and len(parts) > 2
    assert parts[0].on is None
    stream = await llm.astream_structured_predict(Point, prompt, what="it")
    assert [part async for part in stream][-1] == point
    assert says.said == 4


@pytest.mark.shows("structured output")
async def test_a_structured_model(llm: ReAttentionLLM, says: Script) -> None:
    model = llm.as_structured_llm(Point)
    says(*[POINT] * 4)
    assert model.complete("Where?").raw == Point(x=7, on=True)
    assert (await model.achat(ASKED)).raw == Point(x=7, on=True)
    assert list(model.stream_chat(ASKED))[-1].raw == Point(x=7, on=True)
    assert [part async for part in await model.astream_chat(ASKED)][-1].raw == Point(x=7, on=True)


@pytest.mark.shows("structured output")
async def test_any_model_gives_the_object_or_an_error(llm: ReAttentionLLM) -> None:
    prompt = PromptTemplate("Where?")
    assert isinstance(llm.structured_predict(Point, prompt), Point)
    for cut in (llm.structured_predict, lambda *a, **k: list(llm.stream_structured_predict(*a, **k))):
        with pytest.raises(IncompleteAnswerError, match="in the middle of its JSON"):
            cut(Point, prompt, llm_kwargs={"max_tokens": 5})
    with pytest.raises(IncompleteAnswerError):
        await llm.astructured_predict(Point, prompt, llm_kwargs={"max_tokens": 5})


@pytest.mark.shows("the event loop is never blocked")
async def test_prediction_leaves_the_loop_free(llm: ReAttentionLLM, steps: Steps) -> None:
    steps.delay = 0.02
    _, ticks = await watched(llm.astructured_predict(Point, PromptTemplate("Where?")))
    assert ticks > 10
    _, ticks = await watched(llm.achat_with_tools(TOOLS, "Go.", tool_required=True))
    assert ticks > 10


@pytest.mark.shows("structured output")
def test_an_object_out_of_a_corpus(engine: Engine, notes: str) -> None:
    llm = ReAttentionLLM(engine=engine, corpus=notes, max_tokens=60)
    assert isinstance(llm.structured_predict(Point, PromptTemplate("Where?")), Point)
    assert not llm.metadata.is_function_calling_model
    assert ReAttentionLLM(engine=engine).metadata.is_function_calling_model


@pytest.mark.shows("agents")
@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent(llm: ReAttentionLLM, says: Script, streaming: bool) -> None:
    agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming, system_prompt="Be brief.")
    says(BOTH, "All done.")
    response = await agent.run(user_msg="Go.")
    assert str(response) == "All done."
    assert [str(one.tool_output) for one in response.tool_calls] == ["drawn at 7", "wiped"]


@pytest.mark.shows("agents")
@pytest.mark.parametrize("streaming", [True, False])
async def test_react_agent(llm: ReAttentionLLM, says: Script, streaming: bool) -> None:
    agent = ReActAgent(tools=TOOLS, llm=llm, streaming=streaming)
    says(
        f"Thought: I need a tool.\nAction: draw\nAction Input: {POINT}",
        "Thought: I can answer without using any more tools.\nAnswer: All done.",
    )
    response = await agent.run(user_msg="Go.")
    assert str(response) == "All done."
    assert [str(one.tool_output) for one in response.tool_calls] == ["drawn at 7"]


@pytest.mark.shows("agents")
async def test_agent_workflow(llm: ReAttentionLLM, says: Script) -> None:
    first = FunctionAgent(name="first", description="Begins.", llm=llm, can_handoff_to=["second"])
    second = FunctionAgent(name="second", description="Draws.", llm=llm, tools=TOOLS)
    workflow = AgentWorkflow(agents=[first, second], root_agent="first")
    says(call("handoff", '{"to_agent": "second", "reason": "drawing"}'), call("draw", POINT), "All done.")
    response = await workflow.run(user_msg="Go.")
    assert (str(response), response.current_agent_name) == ("All done.", "second")
    assert "drawn at 7" in [str(one.tool_output) for one in response.tool_calls]


@pytest.fixture
def engines(llm: ReAttentionLLM) -> list[QueryEngineTool]:
    """Two corpora as tools."""
    texts = {"foxes": "The fox runs and jumps. " * 4, "dogs": "The dog sleeps all day. " * 4}
    return [
        QueryEngineTool.from_defaults(
            ReAttentionIndex.from_documents([Document(text=text, id_=name)], llm=llm).as_query_engine(),
            name=name,
            description=f"Knows {name}.",
        )
        for name, text in texts.items()
    ]


@pytest.mark.shows("a corpus as a tool")
async def test_query_engine_tool(llm: ReAttentionLLM, says: Script, engines: list[QueryEngineTool]) -> None:
    agent = FunctionAgent(tools=engines, llm=llm)
    says(call("dogs", '{"input": "Who sleeps?"}'), "It sleeps.", "The dog.")
    response = await agent.run(user_msg="Who sleeps?")
    assert str(response) == "The dog."
    output = response.tool_calls[0].tool_output
    assert str(output) == "It sleeps."
    assert [found.node.ref_doc_id for found in output.raw_output.source_nodes] == ["dogs"]


@pytest.mark.shows("query engines of the framework")
def test_router_query_engine(llm: ReAttentionLLM, says: Script, engines: list[QueryEngineTool]) -> None:
    router = RouterQueryEngine.from_defaults(engines, llm=llm)
    says(call("SingleSelection", '{"index": 2, "reason": "dogs"}'), "The dog.")
    response = router.query("Who sleeps?")
    assert str(response) == "The dog."
    assert [found.node.ref_doc_id for found in response.source_nodes] == ["dogs"]


@pytest.mark.shows("query engines of the framework")
def test_sub_question_query_engine(llm: ReAttentionLLM, says: Script, engines: list[QueryEngineTool]) -> None:
    generator = LLMQuestionGenerator.from_defaults(llm=llm)
    asker = SubQuestionQueryEngine.from_defaults(
        engines, llm=llm, question_gen=generator, use_async=False, verbose=False
    )
    questions = [
        {"sub_question": "Who runs?", "tool_name": "foxes"},
        {"sub_question": "Who sleeps?", "tool_name": "dogs"},
    ]
    says("```json\n" + json.dumps({"items": questions}) + "\n```", "The fox.", "The dog.", "Foxes run, dogs sleep.")
    response = asker.query("Who does what?")
    assert str(response) == "Foxes run, dogs sleep."
    assert [found.node.ref_doc_id or found.text for found in response.source_nodes] == [
        "Sub question: Who runs?\nResponse: The fox.",
        "Sub question: Who sleeps?\nResponse: The dog.",
        "foxes",
        "dogs",
    ]


@pytest.mark.shows("query engines of the framework")
def test_summary_index_puts_all_into_one_call(llm: ReAttentionLLM, says: Script) -> None:
    index = SummaryIndex.from_documents([Document(text=f"Fox {i} jumps. " * 20) for i in range(8)])
    says("All foxes jump.")
    response = index.as_query_engine(llm=llm).query("What do they do?")
    assert str(response) == "All foxes jump."
    assert (says.said, len(response.source_nodes)) == (1, 8)


@pytest.mark.shows("chat engines of the framework")
def test_condense_plus_context_chat_engine(llm: ReAttentionLLM, says: Script) -> None:
    index = ReAttentionIndex.from_documents([Document(text="The fox jumps over the dog. " * 4, id_="a")], llm=llm)
    chat = CondensePlusContextChatEngine.from_defaults(index.as_retriever(), llm=llm)
    says("It jumps.")
    response = chat.chat("What does the fox do?")
    assert (str(response), response.source_nodes[0].node.ref_doc_id) == ("It jumps.", "a")
    says("Why does the fox jump?", "For joy.")
    assert str(chat.chat("Why?")) == "For joy."
    says("Once more: why?", "For joy.")
    assert "".join(chat.stream_chat("Why?").response_gen) == "For joy."
