"""LangChain: a corpus in front of an agent's conversation or as its tool, and LangGraph's own pieces, over a tiny model."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from pydantic import BaseModel

from langchain_reattention import ChatReAttention, ReAttentionRetriever, corpus_tool
from langchain_reattention.middleware import HEADING, CorpusMiddleware
from reattention_core import Document, Engine
from reattention_core.errors import CorpusNotFoundError
from tests.scripted import Script, call, scripted

QUESTION = "What does the fox do?"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}]}


class Answer(BaseModel):
    """An answer."""

    yes: bool


@tool
def wipe() -> str:
    """Wipe all."""
    return "wiped"


@pytest.fixture
def chat(engine: Engine) -> ChatReAttention:
    return ChatReAttention(engine=engine, max_tokens=90)


@pytest.fixture
def says(engine: Engine) -> Iterator[Script]:
    engine.attachment.model.generation_config.eos_token_id = engine.tokenizer.eos_token_id
    with scripted(engine) as script:
        yield script


@pytest.fixture
def foxes(engine: Engine) -> str:
    """The name of a saved corpus of some pages."""
    texts = [f"Fox {i} jumps over the lazy dog, and the cache keeps it. " * 2 for i in range(4)]
    documents = [Document(text=text, id=f"d{i}", title=f"Fox {i}" if i % 2 else "") for i, text in enumerate(texts)]
    engine.ingest(documents, name="foxes.v1", progress=False)
    return "foxes.v1"


@pytest.mark.shows("a corpus in front of every question")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("prompt", [None, "Be brief."])
async def test_a_corpus_in_front_of_the_conversation(
    chat: ChatReAttention, foxes: str, engine: Engine, asynchronous: bool, prompt: str | None
) -> None:
    front = CorpusMiddleware(foxes, k=2, engine=engine)
    agent = create_agent(chat, system_prompt=prompt, middleware=[front])
    state = await agent.ainvoke(ASKED) if asynchronous else agent.invoke(ASKED)
    found = ReAttentionRetriever(corpus=foxes, k=2, engine=engine).invoke(QUESTION)
    assert state["passages"] == found and len(found) == 2
    shown = [f"{one.metadata['title']}\n{one.page_content}".strip() for one in found]
    system = SystemMessage("\n\n".join([*([prompt] if prompt else []), HEADING, *shown]))
    assert state["messages"][-1].content == chat.invoke([system, HumanMessage(QUESTION)]).content
    assert [message.type for message in state["messages"]] == ["human", "ai"], "the passages are not kept"


@pytest.mark.shows("a corpus in front of every question")
def test_the_newest_question_is_looked_up_once_for_all_steps(
    chat: ChatReAttention, foxes: str, engine: Engine, says: Script
) -> None:
    looked_up: list[str] = []
    front = CorpusMiddleware(foxes, k=1, engine=engine)
    find = front._retriever

    class Counting(ReAttentionRetriever):
        def invoke(self, input: str, *rest: Any, **given: Any) -> Any:
            looked_up.append(input)
            return find.invoke(input, *rest, **given)

    front._retriever = Counting(corpus=foxes, engine=engine)
    agent = create_agent(chat, [wipe], middleware=[front], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    says(call("wipe", "{}"), "It jumps.", "Twice.")
    first = agent.invoke(ASKED, thread)
    assert [message.type for message in first["messages"]] == ["human", "ai", "tool", "ai"]
    second = agent.invoke({"messages": [{"role": "user", "content": "How often?"}]}, thread)
    assert looked_up == [QUESTION, "How often?"]
    assert second["messages"][-1].content == "Twice."


async def test_streamed_steps_and_an_object(chat: ChatReAttention, foxes: str, engine: Engine, says: Script) -> None:
    agent = create_agent(chat, [wipe], middleware=[CorpusMiddleware(foxes, k=1, engine=engine)], response_format=Answer)
    says('{"yes": true}')
    steps = [step async for step in agent.astream(ASKED, stream_mode="updates")]
    assert [name for step in steps for name in step] == ["CorpusMiddleware.before_agent", "model"]
    assert steps[-1]["model"]["structured_response"] == Answer(yes=True)


def test_no_question_and_no_corpus(chat: ChatReAttention, foxes: str, engine: Engine) -> None:
    agent = create_agent(chat, middleware=[CorpusMiddleware(foxes, engine=engine)])
    state = agent.invoke({"messages": [SystemMessage("Say something.")]})
    assert state["passages"] == [] and state["messages"][-1].type == "ai"
    with pytest.raises(CorpusNotFoundError, match=r"foxes\.v1"):
        create_agent(chat, middleware=[CorpusMiddleware("nothing", engine=engine)]).invoke(ASKED)


@pytest.mark.shows("a corpus as a tool")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_corpus_as_a_tool(
    chat: ChatReAttention, foxes: str, engine: Engine, says: Script, asynchronous: bool
) -> None:
    find = corpus_tool(foxes, "Knows foxes.", k=2, engine=engine)
    assert (find.name, find.description) == ("foxes_v1", "Knows foxes.")
    assert corpus_tool(foxes, "Knows foxes.", name="look", engine=engine).name == "look"
    agent = create_agent(chat, [find])
    says(call("foxes_v1", f'{{"query": "{QUESTION}"}}'), "It jumps.")
    messages = (await agent.ainvoke(ASKED) if asynchronous else agent.invoke(ASKED))["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    found = ReAttentionRetriever(corpus=foxes, k=2, engine=engine).invoke(QUESTION)
    assert messages[2].artifact == found != []
    assert messages[2].content == "\n\n".join(one.page_content for one in found)
    assert messages[3].content == "It jumps."


@pytest.mark.shows("agents")
def test_langgraphs_tool_node_and_condition(chat: ChatReAttention, says: Script) -> None:
    model = chat.bind_tools([wipe])

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode([wipe]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    says(call("wipe", "{}"), "All done.")
    messages = graph.compile().invoke(ASKED)["messages"]
    assert [message.content for message in messages] == [QUESTION, "", "wiped", "All done."]


@pytest.mark.shows("agents")
@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
async def test_langgraphs_react_agent(chat: ChatReAttention, says: Script) -> None:
    agent = create_react_agent(chat, [wipe], prompt="Be brief.")
    for asynchronous in (False, True):
        says(call("wipe", "{}"), "All done.")
        messages = (await agent.ainvoke(ASKED) if asynchronous else agent.invoke(ASKED))["messages"]
        assert [message.content for message in messages] == [QUESTION, "", "wiped", "All done."]


@pytest.mark.shows("what the framework plans with")
def test_a_conversation_beyond_the_capacity_is_summarised(engine: Engine, says: Script) -> None:
    """The framework's own middleware plans with our profile and, where a summary overflows, knows our error."""
    chat = ChatReAttention(engine=engine, context_window=400, max_tokens=40)
    shorten = SummarizationMiddleware(
        chat, trigger=("fraction", 0.8), keep=("messages", 1), summary_prompt="Sum up:\n{messages}"
    )
    talk = [kind("fox " * 40) for kind in (HumanMessage, AIMessage) * 6]
    says("They talked.")
    with pytest.raises(ContextOverflowError):
        chat.invoke(talk)
    says("They talked.", "It jumps.")
    messages = create_agent(chat, middleware=[shorten]).invoke({"messages": [*talk, HumanMessage(QUESTION)]})[
        "messages"
    ]
    assert "They talked." in messages[0].text
    assert [message.text for message in messages[1:]] == [QUESTION, "It jumps."]
