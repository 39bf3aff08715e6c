"""A LangChain retriever over a saved corpus: passages by the model's own attention; knows no vectors."""

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from reattention_core import Source
from reattention_core.frameworks.conversation import stoppable
from reattention_core.frameworks.model import Located
from reattention_core.prefill import Cancelled


class ReAttentionRetriever(Located, BaseRetriever):
    """Finds the passages of a saved corpus that a question asks for, most evidence first, with their scores.

    A passage's metadata has `source`, `title`, `document_id`, `start` and `end` (characters of the document) and `score`, its
    share of all evidence in the corpus. For a tool of an agent, pass it to LangChain's `create_retriever_tool`.

    Example:
        >>> from langchain_reattention import ReAttentionRetriever
        >>> retriever = ReAttentionRetriever(corpus="handbook", k=3)
        >>> retriever.invoke("How long is the warranty?")[0].metadata["score"]

    Args:
        corpus: name of the saved corpus.
        k: passages at most; a call may say another number.
        model: that has read the corpus: the bundled one, a hub id, a folder or the path of a GGUF file.
        device: where the model runs; the first GPU if there is one.
        dtype: type of the weights.
        engine: a ready engine, in place of model, device and dtype.
    """

    model_config = ConfigDict(extra="forbid")

    corpus: str
    k: int = Field(default=4, ge=1)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun | None = None,
        k: int | None = None,
        cancelled: Cancelled = lambda: False,
    ) -> list[Document]:
        corpus = self._corpus(self._engine())
        assert corpus is not None, "its name is required"
        return [_document(source) for source in corpus.find(query, self.k if k is None else k, cancelled)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None, **given: Any
    ) -> list[Document]:
        return await stoppable(lambda stop: self._get_relevant_documents(query, **given, cancelled=stop))


def _document(source: Source) -> Document:
    metadata = source.model_dump(exclude={"quote"})
    return Document(
        page_content=source.quote, metadata=metadata, id=f"{source.document_id}:{source.start}-{source.end}"
    )
