"""LlamaIndex: documents as an index over a corpus, read, edited, kept and asked, over a tiny model."""

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Document,
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    load_index_from_storage,
)
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import ImageDocument, MetadataMode, NodeWithScore, TextNode

from llama_index.indices.reattention import ReAttentionIndex, ReAttentionQueryEngine
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Document as ReadText
from reattention_core import Engine
from reattention_core.errors import (
    CancelledError,
    CorpusExistsError,
    CorpusNotFoundError,
    InvalidConfigError,
    InvalidRequestError,
)
from tests.frameworks.conftest import Steps, stopped, watched

QUESTION = "What does the fox do?"


def text(i: int) -> str:
    return f"Fox {i} jumps over the lazy dog, and the cache keeps it. " * 3


def foxes(n: int = 4) -> list[Document]:
    return [Document(text=text(i), id_=f"d{i}", metadata={"file_path": f"{i}.txt", "size": i}) for i in range(n)]


@pytest.fixture
def llm(engine: Engine) -> ReAttentionLLM:
    return ReAttentionLLM(engine=engine, max_tokens=12)


@pytest.fixture
def index(llm: ReAttentionLLM) -> ReAttentionIndex:
    return ReAttentionIndex.from_documents(foxes(), llm=llm)


def ids(index: ReAttentionIndex) -> list[str]:
    return [] if index.corpus is None else [read.document.id for read in index.corpus.documents]


def check(nodes: list[NodeWithScore], texts: dict[str, str]) -> None:
    """Passages quote their documents where they say they do, and the best comes first."""
    scores = [found.score or 0.0 for found in nodes]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1 + 1e-6
    for found in nodes:
        node = found.node
        assert isinstance(node, TextNode)
        assert node.ref_doc_id is not None
        assert node.text == texts[node.ref_doc_id][node.start_char_idx : node.end_char_idx] != ""
    assert len({found.node.node_id for found in nodes}) == len(nodes) > 0


@pytest.mark.shows("an index: query engine and source nodes")
async def test_all_ways_of_asking_give_the_answer_of_the_corpus_and_what_was_read(
    index: ReAttentionIndex, engine: Engine
) -> None:
    assert index.corpus is not None
    expected = index.corpus.ask(QUESTION, max_new_tokens=12)
    whole, streamed = index.as_query_engine(), index.as_query_engine(streaming=True)
    stream, astream = streamed.query(QUESTION), await streamed.aquery(QUESTION)
    assert isinstance(stream, StreamingResponse) and isinstance(astream, AsyncStreamingResponse)
    pieces = list(stream.response_gen)
    assert len(pieces) > 3 and "".join(pieces) == expected.text
    apieces = [piece async for piece in astream.async_response_gen()]
    assert apieces == pieces
    for response in (whole.query(QUESTION), await whole.aquery(QUESTION), stream, astream):
        if response not in (stream, astream):
            assert str(response) == expected.text
        assert [
            (n.node.ref_doc_id, n.node.start_char_idx, n.node.end_char_idx, n.score) for n in response.source_nodes
        ] == [(s.document_id, s.start, s.end, s.score) for s in expected.sources]
        check(response.source_nodes, {f"d{i}": text(i) for i in range(4)})
        assert set(response.metadata or {}) == {found.node.node_id for found in response.source_nodes}
    assert [n.node.node_id for n in whole.retrieve(query("fox"))] == [  # type: ignore[attr-defined]
        n.node.node_id for n in index.as_retriever().retrieve("fox")
    ]
    short = index.as_query_engine(max_tokens=3).query(QUESTION)
    assert str(short) != expected.text and expected.text.startswith(str(short))
    other = ReAttentionLLM(engine=engine, max_tokens=3)
    assert str(index.as_query_engine(other).query(QUESTION)) == str(short)


def query(asked: str) -> Any:
    from llama_index.core.schema import QueryBundle

    return QueryBundle(asked)


@pytest.mark.shows("retriever")
async def test_a_retriever_finds_what_the_corpus_finds(index: ReAttentionIndex) -> None:
    assert index.corpus is not None
    retriever = index.as_retriever(similarity_top_k=2)
    found = retriever.retrieve(QUESTION)
    assert [(n.node.get_content(MetadataMode.NONE), n.score) for n in found] == [
        (s.quote, s.score) for s in index.corpus.find(QUESTION, 2)
    ]
    assert await retriever.aretrieve(QUESTION) == found and len(found) == 2
    check(found, {f"d{i}": text(i) for i in range(4)})
    assert len(index.as_retriever().retrieve(QUESTION)) == 4


@pytest.mark.shows("an index: from_documents, insert, delete, refresh")
def test_metadata_are_read_as_the_framework_shows_them_and_come_back(llm: ReAttentionLLM) -> None:
    shown = Document(
        text=text(0),
        id_="d0",
        metadata={"author": "Ann", "secret": "x", "day": date(2026, 1, 31)},
        excluded_llm_metadata_keys=["secret"],
    )
    index = ReAttentionIndex.from_documents([shown], llm=llm)
    assert index.corpus is not None
    read = index.corpus.documents[0].document
    assert f"{read.title}\n\n{read.text}".strip() == shown.get_content(MetadataMode.LLM).strip()
    assert "author: Ann" in read.title and "secret" not in read.title
    node = index.as_retriever().retrieve(QUESTION)[0].node
    assert node.metadata == {"author": "Ann", "secret": "x", "day": "2026-01-31"}
    assert "secret" not in node.get_content(MetadataMode.LLM)
    assert index.ref_doc_info["d0"].metadata == node.metadata


def test_a_folder_read_by_the_framework(llm: ReAttentionLLM, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(text(1))
    (tmp_path / "empty.txt").write_text(" ")
    index = ReAttentionIndex.from_documents(SimpleDirectoryReader(str(tmp_path)).load_data(), llm=llm)
    (found, *_) = index.as_query_engine().query(QUESTION).source_nodes
    assert found.node.metadata["file_path"] == str(tmp_path / "fox.txt")
    assert list(index.ref_doc_info) == [found.node.ref_doc_id]


@pytest.mark.shows("an index: from_documents, insert, delete, refresh")
async def test_documents_are_inserted_updated_and_deleted(index: ReAttentionIndex, caplog: Any) -> None:
    index.insert(Document(text=text(4), id_="d4"))
    await index.ainsert(Document(text=text(5), id_="d5"))
    assert ids(index) == ["d0", "d1", "d2", "d3", "d4", "d5"]
    with pytest.raises(InvalidRequestError, match="another document of the id 'd4'"):
        index.insert(Document(text="Other.", id_="d4"))
    index.delete_ref_doc("d1", delete_from_docstore=True)
    await index.adelete_ref_doc("d2")
    index.delete_nodes(["d5"])
    assert ids(index) == list(index.ref_doc_info) == ["d0", "d3", "d4"]
    with caplog.at_level(logging.WARNING):
        index.delete_ref_doc("d1")
    assert "'d1' is not in the index" in caplog.text and len(ids(index)) == 3
    index.update_ref_doc(Document(text="The fox sleeps. " * 9, id_="d3"))
    await index.aupdate_ref_doc(Document(text="The fox runs. " * 9, id_="d4"))
    assert index.corpus is not None
    assert [read.document.text[:9] for read in index.corpus.documents] == ["Fox 0 jum", "The fox s", "The fox r"]
    assert index.index_struct.n_documents == 3
    fresh = ReAttentionIndex.from_documents(
        [Document(text=read.document.text, id_=read.document.id, metadata={"a": 1}) for read in index.corpus.documents],
        llm=index._llm,
    )
    assert list(fresh.ref_doc_info) == ids(index)


@pytest.mark.shows("an index: from_documents, insert, delete, refresh")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_refresh_reads_only_what_is_new_or_changed(
    index: ReAttentionIndex, steps: Steps, asynchronous: bool
) -> None:
    async def refresh(documents: list[Document]) -> list[bool]:
        return await index.arefresh_ref_docs(documents) if asynchronous else index.refresh_ref_docs(documents)

    assert await refresh(foxes()) == [False] * 4
    assert steps.count == 0, "nothing changed, nothing is read"
    now = [*foxes(), Document(text="New. " * 9, id_="d9")]
    now[2] = Document(text="Changed. " * 9, id_="d2")
    assert await refresh(now) == [False, False, True, False, True]
    assert ids(index) == ["d0", "d1", "d2", "d3", "d9"]
    assert await refresh(now) == [False] * 5
    steps.count = 0
    now[1].metadata["size"] = 99
    assert await refresh(now) == [False, True, False, False, False]
    assert index.ref_doc_info["d1"].metadata["size"] == 99 and steps.count > 0, "metadata are read, too"
    steps.count = 0
    now[1].excluded_llm_metadata_keys = now[1].excluded_embed_metadata_keys = ["size"]
    assert await refresh([now[1]]) == [False], "as the framework compares documents"


@pytest.mark.shows("an index: from_documents, insert, delete, refresh")
def test_an_empty_index_is_filled_by_its_first_document(llm: ReAttentionLLM) -> None:
    for index in (ReAttentionIndex.from_documents([], llm=llm), ReAttentionIndex([], llm=llm)):
        assert index.as_retriever().retrieve(QUESTION) == [] and index.corpus is None
        assert str(index.as_query_engine().query(QUESTION)) == "Empty Response"
        index.insert(foxes()[0])
        assert index.as_query_engine().query(QUESTION).source_nodes
        index.delete_ref_doc("d0")
        assert str(index.as_query_engine(streaming=True).query(QUESTION)) == "Empty Response"
        assert index.refresh_ref_docs(foxes(2)) == [True, True] and ids(index) == ["d0", "d1"]
    with pytest.raises(ValueError, match="must be provided"):
        ReAttentionIndex(llm=llm)


async def test_edits_at_once_lose_nothing(llm: ReAttentionLLM, engine: Engine, tmp_path: Path) -> None:
    index = ReAttentionIndex([], llm=llm)

    async def persist() -> None:
        await asyncio.to_thread(index.storage_context.persist, str(tmp_path))

    await asyncio.gather(*(index.ainsert(one) for one in foxes(6)), persist(), index.adelete_ref_doc("none"))
    assert sorted(ids(index)) == [f"d{i}" for i in range(6)] and index.index_struct.n_documents == 6
    await persist()
    assert len(engine.open(index.index_id).documents) == 6


@pytest.mark.shows("an index: persist and load")
def test_kept_and_loaded_by_the_frameworks_own_means(index: ReAttentionIndex, engine: Engine, tmp_path: Path) -> None:
    engines = index.as_query_engine()
    before = engines.query(QUESTION)
    assert engine.store.names() == [], "nothing is written until it is asked for"
    index.storage_context.persist(str(tmp_path / "kept"))
    assert engine.store.names() == [index.index_id]
    for file in (tmp_path / "kept").iterdir():
        json.loads(file.read_text())  # nothing is pickled
    index.insert(Document(text=text(8), id_="d8"))  # saved at once from here on
    index.delete_ref_doc("d8")
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "kept"))
    loaded = load_index_from_storage(context, llm=index._llm)
    assert isinstance(loaded, ReAttentionIndex) and loaded.index_id == index.index_id
    after = loaded.as_query_engine().query(QUESTION)
    assert (str(after), after.source_nodes) == (str(before), before.source_nodes)
    assert loaded.ref_doc_info == index.ref_doc_info
    assert loaded.refresh_ref_docs(foxes()) == [False] * 4, "it knows what it has read"
    loaded.insert(Document(text=text(9), id_="d9"))
    loaded.storage_context.persist(str(tmp_path / "kept"))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "kept"))
    again = load_index_from_storage(context, index_id=index.index_id, llm=index._llm)
    assert isinstance(again, ReAttentionIndex) and ids(again)[-1] == "d9"
    engine.store.remove(index.index_id)
    del loaded, again, context
    with pytest.raises(CorpusNotFoundError, match=index.index_id):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path / "kept")), llm=index._llm)


@pytest.mark.shows("an index: persist and load")
def test_two_indices_and_an_empty_one_in_one_folder(
    index: ReAttentionIndex, llm: ReAttentionLLM, tmp_path: Path
) -> None:
    context = index.storage_context
    index.set_index_id("first")
    ReAttentionIndex.from_documents(foxes(2), storage_context=context, llm=llm).set_index_id("second")
    ReAttentionIndex([], storage_context=context, llm=llm, corpus="later").set_index_id("third")
    context.persist(str(tmp_path))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path))
    loaded = [load_index_from_storage(context, index_id=name, llm=llm) for name in ("first", "second", "third")]
    assert [len(one.ref_doc_info) for one in loaded] == [4, 2, 0]
    loaded[2].insert(foxes()[0])
    assert "later" in llm.engine.store.names()
    assert [len(one.ref_doc_info) for one in loaded] == [4, 2, 1]


@pytest.mark.shows("an index: persist and load")
def test_a_named_corpus_is_shared_with_the_library(llm: ReAttentionLLM, engine: Engine) -> None:
    index = ReAttentionIndex.from_documents(foxes(), llm=llm, corpus="foxes")
    assert engine.store.names() == ["foxes"]
    index.delete_ref_doc("d0")
    assert len(engine.open("foxes").documents) == 3
    with pytest.raises(CorpusExistsError, match="foxes"):
        ReAttentionIndex.from_documents(foxes(), llm=llm, corpus="foxes")
    ReAttentionIndex.from_documents(foxes(1), llm=llm, corpus="foxes", replace=True)
    assert len(engine.open("foxes").documents) == 1
    engine.ingest([ReadText(text=text(0), id="a", title="Foxes", source="a.md")], name="own", progress=False)
    opened = ReAttentionIndex.from_corpus("own", llm=llm)
    node = opened.as_query_engine().query(QUESTION).source_nodes[0].node
    assert node.metadata == {"title": "Foxes", "source": "a.md"} and node.ref_doc_id == "a"
    opened.insert(Document(text=text(1), id_="b"))
    assert [read.document.id for read in engine.open("own").documents] == ["a", "b"]
    with pytest.raises(CorpusNotFoundError):
        ReAttentionIndex.from_corpus("nothing", llm=llm)


@pytest.mark.shows("an index: from_documents, insert, delete, refresh")
def test_nodes_that_were_cut_belong_to_their_document(llm: ReAttentionLLM) -> None:
    index = ReAttentionIndex.from_documents(
        [Document(text=text(0) * 3, id_="d0"), Document(text=text(1), id_="d1")],
        llm=llm,
        transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0)],
    )
    parts = index.ref_doc_info["d0"].node_ids
    assert len(parts) > 1 and ids(index)[: len(parts)] == parts
    assert {found.node.ref_doc_id for found in index.as_retriever(similarity_top_k=9).retrieve("fox")} == {"d0", "d1"}
    assert index.refresh_ref_docs([Document(text=text(0) * 3, id_="d0"), Document(text=text(7), id_="d1")]) == [
        False,
        True,
    ]
    assert index.ref_doc_info["d0"].node_ids == parts and len(index.ref_doc_info) == 2
    index.delete_ref_doc("d0")
    assert list(index.ref_doc_info) == ["d1"]
    index.insert_nodes([TextNode(text=text(3), id_="n3")])
    assert index.ref_doc_info["n3"].node_ids == ["n3"]


@pytest.mark.shows("query engines of the framework")
def test_what_only_makes_sense_in_a_prompt_is_the_frameworks_engine(index: ReAttentionIndex) -> None:
    engine = index.as_query_engine(
        similarity_top_k=3, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0)]
    )
    assert isinstance(engine, RetrieverQueryEngine)
    response = engine.query(QUESTION)
    assert len(response.source_nodes) == 3 and str(response)
    other = index.as_query_engine(MockLLM(max_tokens=2), response_mode=ResponseMode.COMPACT)
    assert isinstance(other, RetrieverQueryEngine) and str(other.query(QUESTION))
    streamed = index.as_query_engine(MockLLM(max_tokens=2), streaming=True).query(QUESTION)
    assert isinstance(streamed, StreamingResponse) and len(list(streamed.response_gen)) > 0
    assert isinstance(index.as_query_engine(), ReAttentionQueryEngine)


@pytest.mark.shows("an index: chat engines")
@pytest.mark.usefixtures("left_open_here")
@pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["best", "condense_plus_context", "context", "condense_question"])
async def test_chat_engines(index: ReAttentionIndex, mode: Any) -> None:
    chat = index.as_chat_engine(mode)
    first = chat.chat(QUESTION)
    assert first.response and first.source_nodes
    check(first.source_nodes, {f"d{i}": text(i) for i in range(4)})
    second = await chat.achat("Why?")
    assert second.response and second.source_nodes
    assert [message.role.value for message in chat.chat_history] == ["user", "assistant"] * 2
    if mode == "condense_question":
        chat = index.as_chat_engine(mode, streaming=True)
    stream = chat.stream_chat("Again?")
    assert "".join(stream.response_gen).strip() == (chat.chat_history[-1].content or "").strip() != ""
    astream = await chat.astream_chat("And again?")
    streamed = "".join([piece async for piece in astream.async_response_gen()])
    assert streamed.strip() == (chat.chat_history[-1].content or "").strip()
    chat.reset()
    assert chat.chat_history == []


@pytest.mark.shows("arguments that would have no effect are refused")
def test_arguments_that_would_have_no_effect_are_refused(index: ReAttentionIndex, llm: ReAttentionLLM) -> None:
    with pytest.raises(InvalidConfigError, match=r"as_retriever: filters \(allowed: similarity_top_k\)"):
        index.as_retriever(filters=None)
    with pytest.raises(InvalidConfigError, match=r"as_query_engine: temperatur \(allowed: streaming, temperature"):
        index.as_query_engine(temperatur=1)
    with pytest.raises(
        InvalidConfigError, match="max_tokens is said to the model where passages are put into a prompt"
    ):
        index.as_query_engine(max_tokens=3, similarity_top_k=2)
    with pytest.raises(InvalidConfigError, match="as_chat_engine: sytem_prompt"):
        index.as_chat_engine(sytem_prompt="Be brief.")
    with pytest.raises(InvalidConfigError, match="'simple' does not ask an index"):
        index.as_chat_engine("simple")
    with pytest.raises(TypeError, match="embed_model"):
        ReAttentionIndex.from_documents(foxes(), embed_model=None)
    for edit in (lambda: index.insert(foxes(9)[8], replace=True), lambda: index.delete_ref_doc("d0", hard=True)):
        with pytest.raises(TypeError, match="unknown arguments of an edit"):
            edit()
    with pytest.raises(InvalidConfigError, match="answers from corpus 'notes'"):
        ReAttentionIndex.from_documents(foxes(), llm=ReAttentionLLM(engine=llm.engine, corpus="notes"))
    with pytest.raises(InvalidRequestError, match="is an image"):
        ReAttentionIndex.from_documents([ImageDocument(image="AAAA", id_="i")], llm=llm)
    for wrong in ("a text", ["a text"]):
        with pytest.raises(InvalidRequestError, match="LlamaIndex's Documents, got str"):
            ReAttentionIndex.from_documents(wrong, llm=llm)
    assert ids(index) == ["d0", "d1", "d2", "d3"]


def test_the_model_comes_from_settings(llm: ReAttentionLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", llm)
    assert ReAttentionIndex.from_documents(foxes(1))._llm is llm
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    assert ReAttentionIndex([])._llm.to_dict() == ReAttentionLLM().to_dict(), "and nothing is loaded"


@pytest.mark.shows("the event loop is never blocked", "closing and cancelling stop the model")
async def test_an_edit_and_a_search_leave_the_loop_free_and_can_be_cancelled(
    index: ReAttentionIndex, steps: Steps
) -> None:
    steps.delay = 0.02
    for call in (index.ainsert(Document(text=text(0) * 40, id_="long")), index.as_retriever().aretrieve(QUESTION)):
        _, ticks = await watched(call)
        assert ticks > 5
    for call in (
        index.ainsert(Document(text=text(1) * 99, id_="longer")),
        index.as_query_engine(max_tokens=200).aquery("fox"),
    ):
        steps.count, task = 0, asyncio.create_task(call)
        while steps.count < 2 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, CancelledError)):
            await task
        assert await stopped(steps)
    assert ids(index) == ["d0", "d1", "d2", "d3", "long"], "a cancelled edit changes nothing"


@pytest.mark.shows("callbacks, instrumentation, events")
def test_callbacks_see_the_query_the_search_and_the_model(llm: ReAttentionLLM) -> None:
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler()
    manager = CallbackManager([debug, counter])
    index = ReAttentionIndex.from_documents(foxes(), llm=llm, callback_manager=manager)
    index.as_query_engine().query(QUESTION)
    assert [len(debug.get_event_pairs(kind)) for kind in (CBEventType.QUERY, CBEventType.LLM)] == [1, 1]
    assert counter.completion_llm_token_count == 12 and counter.prompt_llm_token_count > 0
    index.as_retriever().retrieve(QUESTION)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


@pytest.fixture(autouse=True)
def no_default_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Settings, "_llm", None)
    yield


@pytest.mark.shows("an index: query engine and source nodes")
def test_the_bundled_model_answers_where_a_vector_store_did() -> None:
    """The program of integrations/README.md, with texts in the place of a folder."""
    texts = [f"Report {i}. The weather in town {i} was mild, and the market opened at nine. " * 4 for i in range(8)]
    texts[5] += "The warranty of the device lasts twenty-seven months. "
    index = ReAttentionIndex.from_documents([Document(text=text, id_=str(i)) for i, text in enumerate(texts)])
    response = index.as_query_engine(max_tokens=24).query("How long does the warranty of the device last?")
    assert any(number in str(response) for number in ("27", "twenty-seven"))
    best = response.source_nodes[0].node
    assert best.ref_doc_id == "5" and "twenty-seven months" in best.get_content()
