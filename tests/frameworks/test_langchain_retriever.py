"""LangChain: the retriever and the tool made of it, with LangChain's own suites, over a tiny random model."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.tools.retriever import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from langchain_reattention import ReAttentionRetriever
from reattention_core import Document, Engine
from reattention_core.errors import ContextTooLongError, CorpusNotFoundError, EmptyPromptError, InvalidRequestError
from reattention_core.frameworks.shared import shared_engine
from tests.frameworks.conftest import Steps, stopped

QUESTION = "What does the fox do?"


@pytest.fixture
def retriever_of_foxes(engine: Engine) -> ReAttentionRetriever:
    """Twelve documents of some pages each."""
    texts = [f"Fox {i} jumps over the lazy dog, and the cache keeps it. " * 6 for i in range(12)]
    documents = [Document(text=text, id=f"d{i}", title=f"Fox {i}", source=f"{i}.txt") for i, text in enumerate(texts)]
    engine.ingest(documents, name="foxes", progress=False)
    return ReAttentionRetriever(corpus="foxes", engine=engine)


@pytest.mark.shows("the framework's standard tests")
class TestRetriever(RetrieversIntegrationTests):
    _engine: ClassVar[Engine]

    @pytest.fixture(autouse=True)
    def prepare(self, retriever_of_foxes: ReAttentionRetriever) -> Iterator[None]:
        type(self)._engine = retriever_of_foxes.engine
        yield

    @property
    def retriever_constructor(self) -> type[ReAttentionRetriever]:
        return ReAttentionRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"corpus": "foxes", "engine": self._engine}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class _Tool:
    _tool: ClassVar[BaseTool]

    @pytest.fixture(autouse=True)
    def prepare(self, retriever_of_foxes: ReAttentionRetriever) -> None:
        type(self)._tool = create_retriever_tool(
            retriever_of_foxes, "foxes", "Knows foxes.", response_format="content_and_artifact"
        )

    @property
    def tool_constructor(self) -> BaseTool:
        return self._tool

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"query": QUESTION}


@pytest.mark.shows("the framework's standard tests")
class TestToolUnit(_Tool, ToolsUnitTests):
    pass


@pytest.mark.shows("the framework's standard tests")
class TestToolIntegration(_Tool, ToolsIntegrationTests):
    pass


@pytest.mark.shows("retriever")
async def test_passages_are_what_the_corpus_finds(retriever_of_foxes: ReAttentionRetriever, engine: Engine) -> None:
    found = engine.open("foxes").find(QUESTION, 4)
    documents = retriever_of_foxes.invoke(QUESTION)
    assert await retriever_of_foxes.ainvoke(QUESTION) == documents
    assert [d.page_content for d in documents] == [source.quote for source in found]
    assert [d.metadata for d in documents] == [source.model_dump(exclude={"quote"}) for source in found]
    scores = [d.metadata["score"] for d in documents]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    assert len({d.id for d in documents}) == 4
    assert len(await retriever_of_foxes.ainvoke(QUESTION, None, k=2)) == 2


def test_passages_quote_their_documents_and_do_not_overlap(engine: Engine) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 40
    corpus = engine.ingest(
        [Document(text=text, id="a"), Document(text="A cache keeps the keys. " * 9, id="b")], progress=False
    )
    for k in range(1, 9):
        found = corpus.find(QUESTION, k)
        assert 0 < len(found) <= k
        for source in found:
            assert source.document_id == "b" or source.quote == text[source.start : source.end]
        spans = sorted((source.document_id, source.start, source.end) for source in found)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))


@pytest.mark.shows("a corpus as a tool")
def test_a_tool_brings_the_passages_as_its_artifact(retriever_of_foxes: ReAttentionRetriever) -> None:
    tool = create_retriever_tool(retriever_of_foxes, "foxes", "Knows foxes.", response_format="content_and_artifact")
    message = tool.invoke({"type": "tool_call", "id": "a", "name": "foxes", "args": {"query": QUESTION}})
    assert isinstance(message, ToolMessage)
    assert message.artifact == retriever_of_foxes.invoke(QUESTION)
    assert message.artifact[0].page_content in message.content


def test_what_cannot_be_found(retriever_of_foxes: ReAttentionRetriever, engine: Engine) -> None:
    with pytest.raises(EmptyPromptError):
        retriever_of_foxes.invoke(" ")
    with pytest.raises(InvalidRequestError, match="at least 1, got 0"):
        retriever_of_foxes.invoke(QUESTION, None, k=0)
    with pytest.raises(ContextTooLongError, match="window of 512"):
        retriever_of_foxes.invoke("fox " * 600)
    with pytest.raises(CorpusNotFoundError, match="foxes"):
        ReAttentionRetriever(corpus="nothing", engine=engine).invoke(QUESTION)


@pytest.mark.shows("closing and cancelling stop the model")
async def test_cancelling_a_search_stops_the_model(retriever_of_foxes: ReAttentionRetriever, steps: Steps) -> None:
    retriever_of_foxes.invoke(QUESTION)
    steps.count, steps.delay = 0, 0.05
    task = asyncio.create_task(retriever_of_foxes.ainvoke(QUESTION))
    while not steps.count:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stopped(steps)


def test_the_bundled_model_finds_the_passage() -> None:
    engine = shared_engine()
    texts = [f"Report {i}. The weather in town {i} was mild, and the market opened at nine. " * 4 for i in range(8)]
    texts[5] += "The warranty of the device lasts twenty-seven months. "
    corpus = engine.ingest([Document(text=text, id=str(i)) for i, text in enumerate(texts)], progress=False)
    best = corpus.find("How long does the warranty of the device last?", 1)[0]
    assert best.document_id == "5" and "twenty-seven months" in best.quote
