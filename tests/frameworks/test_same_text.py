"""The same questions through the library, LlamaIndex and LangChain: the same text, because all three are one engine."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage

from langchain_reattention import ChatReAttention
from llama_index.indices.reattention import ReAttentionIndex
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Document as ReadText
from reattention_core import Engine
from reattention_core.frameworks.shared import shared_engine

Case = TypeVar("Case")

KINDS = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}

TALKS = [
    [("user", "What is the capital of France?")],
    [("system", "Answer in one word."), ("user", "What colour is the sky?")],
    [("user", "Name a fruit."), ("assistant", "An apple."), ("user", "And another one?")],
    [("user", "日本 é 😀 — <|im_end|> is text.")],
    [("user", "fox " * 400 + "\n\nWhat was that?")],
]
"""The last one is longer than the tiny model's window."""


@pytest.fixture(params=["tiny", "bundled"])
def answering(request: pytest.FixtureRequest) -> Engine:
    """An engine over a tiny random model, and the one over the bundled model."""
    if request.param == "bundled":
        return shared_engine()
    made: Engine = request.getfixturevalue("engine")
    return made


def everywhere(engine: Engine, max_tokens: int) -> list[Callable[[list[tuple[str, str]]], str]]:
    """The ways to have a conversation answered."""
    llm = ReAttentionLLM(engine=engine, max_tokens=max_tokens)
    chat = ChatReAttention(engine=engine, max_tokens=max_tokens)
    return [
        lambda talk: engine.generate([dict(role=r, content=t) for r, t in talk], max_new_tokens=max_tokens).text,
        lambda talk: str(llm.chat([ChatMessage(role=r, content=t) for r, t in talk]).message.content),
        lambda talk: str(chat.invoke([KINDS[r](t) for r, t in talk]).content),
    ]


def some(engine: Engine, cases: list[Case]) -> list[Case]:
    """All of them for the tiny model, the first for the bundled one, which takes its time on a CPU."""
    return cases if engine.window < 1000 else cases[:1]


@pytest.mark.shows("the same text as the library's own")
def test_a_conversation(answering: Engine) -> None:
    ways = everywhere(answering, 12)
    seen = set()
    for talk in some(answering, TALKS):
        texts = [way(talk) for way in ways]
        assert texts[0] and len(set(texts)) == 1, f"{talk}: {texts}"
        seen.add(texts[0])
    assert len(seen) == len(some(answering, TALKS)), "and not because all answers are alike"


@pytest.mark.shows("the same text as the library's own")
def test_a_question_to_documents(answering: Engine) -> None:
    """The index reads them itself; what it reads is what the library reads."""
    texts = {
        "fox": "The quick brown fox jumps over the lazy dog. It does so every morning at nine. " * 3,
        "cache": "A cache keeps the keys and the values of every token that was read. " * 3,
        "device": "The warranty of the device lasts twenty-seven months from the day of purchase. " * 3,
    }
    name = "same-text"
    corpus = answering.ingest(
        [ReadText(text=text, id=name) for name, text in texts.items()], name=name, replace=True, progress=False
    )
    try:
        llm = ReAttentionLLM(engine=answering, max_tokens=12)
        index = ReAttentionIndex.from_documents([Document(text=t, id_=n) for n, t in texts.items()], llm=llm)
        over = ReAttentionLLM(engine=answering, corpus=name, max_tokens=12)
        chat = ChatReAttention(engine=answering, corpus=name, max_tokens=12)
        asker = index.as_query_engine()
        questions = ["How long does the warranty last?", "When does the fox jump?", "What does a cache keep?"]
        for question in some(answering, questions):
            expected = corpus.ask(question, max_new_tokens=12)
            response, message = asker.query(question), chat.invoke(question)
            said = over.chat([ChatMessage(role="user", content=question)])
            assert {str(response), str(said.message.content), str(message.content)} == {expected.text} != {""}
            read = [source.model_dump() for source in expected.sources]
            assert said.raw is not None
            assert said.raw["sources"] == message.response_metadata["sources"] == read != []
            assert [(found.node.get_content(), found.score) for found in response.source_nodes] == [
                (source.quote, source.score) for source in expected.sources
            ]
    finally:
        answering.store.remove(name)
