"""A LlamaIndex query engine over an index: the model reads the corpus and answers; knows no prompt templates."""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index.indices.reattention.nodes import passages
from llama_index.indices.reattention.retriever import ReAttentionRetriever
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core.corpus import Corpus

NOTHING = "Empty Response"
"""What the framework's own query engines answer where there is nothing to read."""


class ReAttentionQueryEngine(BaseQueryEngine):
    """Answers a question from the corpus. `source_nodes` are the passages that were read, with their places and scores.

    Of a streamed answer, they and `metadata` are there once the last piece is.

    Args:
        corpus: gives the corpus, or None while it has no documents.
        llm: that answers.
        streaming: whether answers are streamed.
        settings: of every answer, such as max_tokens.
        callback_manager: the framework's.
    """

    def __init__(
        self,
        corpus: Callable[[], Corpus | None],
        llm: ReAttentionLLM,
        streaming: bool = False,
        settings: Mapping[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager)
        self._corpus, self._llm, self._streaming, self._settings = corpus, llm, streaming, dict(settings or {})

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The passages that a question asks for, without an answer being written."""
        return ReAttentionRetriever(self._corpus, callback_manager=self.callback_manager).retrieve(query_bundle)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(CBEventType.QUERY, {EventPayload.QUERY_STR: query_bundle.query_str}) as event:
            corpus, made = self._corpus(), cast(RESPONSE_TYPE, Response(NOTHING))
            if corpus is not None:
                llm, asked, response = *self._asked(corpus, query_bundle), _Sources(corpus)
                if self._streaming:
                    pieces = response.growing(llm.stream_chat(asked, **self._settings))
                    made = StreamingResponse(pieces, response.nodes, response.metadata)
                else:
                    text = response.read(llm.chat(asked, **self._settings))
                    made = Response(text, response.nodes, response.metadata)
            event.on_end({EventPayload.RESPONSE: made})
        return made

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(CBEventType.QUERY, {EventPayload.QUERY_STR: query_bundle.query_str}) as event:
            corpus, made = self._corpus(), cast(RESPONSE_TYPE, Response(NOTHING))
            if corpus is not None:
                llm, asked, response = *self._asked(corpus, query_bundle), _Sources(corpus)
                if self._streaming:
                    pieces = response.agrowing(await llm.astream_chat(asked, **self._settings))
                    made = AsyncStreamingResponse(pieces, response.nodes, response.metadata)
                else:
                    text = response.read(await llm.achat(asked, **self._settings))
                    made = Response(text, response.nodes, response.metadata)
            event.on_end({EventPayload.RESPONSE: made})
        return made

    def _asked(self, corpus: Corpus, query: QueryBundle) -> tuple[ReAttentionLLM, list[ChatMessage]]:
        llm = self._llm.over(corpus)
        # So that one who counts the tokens of the index sees the model's, too.
        llm.callback_manager = self.callback_manager
        return llm, [ChatMessage(role="user", content=query.query_str)]


class _Sources:
    """What an answer rests on; a stream of it fills this in at its end.

    Args:
        corpus: that is asked.

    Attributes:
        nodes: the passages.
        metadata: of every passage, by the ids of the nodes, as the framework's query engines give it.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._before = corpus, corpus.documents
        self.nodes, self.metadata = list[NodeWithScore](), dict[str, Any]()

    def read(self, response: ChatResponse) -> str:
        # The answer is of the documents as they were when it began; an edit may have come just before or since.
        self.nodes += passages((response.raw or {})["sources"], (*self._corpus.documents, *self._before))
        self.metadata.update({found.node.node_id: found.node.metadata for found in self.nodes})
        return response.message.content or ""

    def growing(self, chunks: Generator[ChatResponse, None, None]) -> Generator[str, None, None]:
        try:
            for chunk in chunks:
                if chunk.raw is not None:
                    self.read(chunk)
                if chunk.delta:
                    yield chunk.delta
        finally:
            chunks.close()

    async def agrowing(self, chunks: AsyncGenerator[ChatResponse, None]) -> AsyncGenerator[str, None]:
        try:
            async for chunk in chunks:
                if chunk.raw is not None:
                    self.read(chunk)
                if chunk.delta:
                    yield chunk.delta
        finally:
            await chunks.aclose()
