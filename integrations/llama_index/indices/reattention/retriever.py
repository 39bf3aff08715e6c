"""A LlamaIndex retriever over an index: passages by the model's own attention; knows no vectors."""

from collections.abc import Callable

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index.indices.reattention.nodes import passages
from reattention_core.corpus import Corpus
from reattention_core.frameworks.conversation import stoppable
from reattention_core.prefill import Cancelled


class ReAttentionRetriever(BaseRetriever):
    """Finds the passages that a question asks for, most evidence first; their scores are shares of all evidence.

    Args:
        corpus: gives the corpus, or None while it has no documents.
        similarity_top_k: passages at most.
        callback_manager: the framework's.
    """

    def __init__(
        self,
        corpus: Callable[[], Corpus | None],
        similarity_top_k: int = 4,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._corpus, self.similarity_top_k = corpus, similarity_top_k

    def _retrieve(self, query_bundle: QueryBundle, cancelled: Cancelled = lambda: False) -> list[NodeWithScore]:
        corpus = self._corpus()
        if corpus is None:
            return []
        documents = corpus.documents
        return passages(corpus.find(query_bundle.query_str, self.similarity_top_k, cancelled), documents)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await stoppable(lambda cancelled: self._retrieve(query_bundle, cancelled))
