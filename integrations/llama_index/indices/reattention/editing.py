"""The edits that LlamaIndex asks of an index, one edit of the corpus each; knows no retrieval and no stores of the framework.

The framework's own forms go through its document store, node by node. Here the corpus is the only record of the documents,
so none of them are inherited. The forms with an `a` in front leave the event loop free, and cancelling them changes nothing.
"""

import logging
from collections.abc import Sequence
from typing import Any

from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, Document
from llama_index.core.storage.docstore.types import RefDocInfo

from llama_index.indices.reattention.nodes import document, metadata, ref_doc_hash, ref_doc_id, transformed
from llama_index.indices.reattention.storage import CorpusStruct, Kept
from reattention_core import Document as ReadText
from reattention_core.corpus import Corpus
from reattention_core.frameworks.conversation import stoppable
from reattention_core.prefill import Cancelled

logger = logging.getLogger(__name__)


def never() -> bool:
    """The edit goes on."""
    return False


class Edits(BaseIndex[CorpusStruct]):
    """An index whose documents are a corpus."""

    _kept: Kept

    @property
    def corpus(self) -> Corpus | None:
        """The corpus; None while no document was read."""
        return self._kept.corpus

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The nodes and the metadata of every document, by the documents' ids."""
        found: dict[str, RefDocInfo] = {}
        for read in self._texts():
            info = found.setdefault(ref_doc_id(read), RefDocInfo(metadata=metadata(read)))
            info.node_ids.append(read.id)
        return found

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Read a document more; `update_ref_doc` and `refresh_ref_docs` replace one.

        Raises:
            InvalidRequestError: there is another one of its id.
        """
        self.insert_nodes(self._transformed([document], insert_kwargs))

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """Like `insert`."""
        await self.ainsert_nodes(self._transformed([document], insert_kwargs))

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Read nodes more, each as a document of the corpus."""
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes, **insert_kwargs)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Like `insert_nodes`."""
        with self._callback_manager.as_trace("ainsert_nodes"):
            await stoppable(lambda cancelled: self._insert(nodes, cancelled, **insert_kwargs))

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take nodes out.

        Args:
            node_ids: theirs.
            delete_from_docstore: of no effect, because nothing is there.
            delete_kwargs: none are known.

        Raises:
            InvalidRequestError: there is none of an id.
        """
        _none_known(delete_kwargs)
        with self._kept.editing:
            if self.corpus is not None and node_ids:
                self.corpus.remove(node_ids)
            self._noted()

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Like `delete_nodes`."""
        await stoppable(lambda _: self.delete_nodes(node_ids, delete_from_docstore, **delete_kwargs))

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take a document out, with all of its nodes; one that is not there is only warned of, as the framework does."""
        with self._kept.editing:
            info = self.ref_doc_info.get(ref_doc_id)
            if info is None:
                logger.warning("document %r is not in the index: nothing is deleted", ref_doc_id)
                return
            self.delete_nodes(info.node_ids, delete_from_docstore, **delete_kwargs)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Like `delete_ref_doc`."""
        await stoppable(lambda _: self.delete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs))

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace the document of an id, in its place; it is read again where its text or what stands before it changed."""
        self._renew([document], update_kwargs)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Like `update_ref_doc`."""
        await stoppable(lambda cancelled: self._renew([document], update_kwargs, cancelled))

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Bring the index up to date: new and changed documents are read, in one edit.

        Returns:
            For every document, whether it was new or changed.
        """
        return self._refresh(documents, update_kwargs)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Like `refresh_ref_docs`."""
        return await stoppable(lambda cancelled: self._refresh(documents, update_kwargs, cancelled))

    def _refresh(
        self, documents: Sequence[Document], given: dict[str, Any], cancelled: Cancelled = never
    ) -> list[bool]:
        with self._kept.editing:
            known = {ref_doc_id(read): ref_doc_hash(read) for read in self._texts()}
            changed = [known.get(one.id_) != one.hash for one in documents]
            self._renew([one for one, new in zip(documents, changed, strict=True) if new], given, cancelled)
            return changed

    def _renew(self, documents: Sequence[Document], given: dict[str, Any], cancelled: Cancelled = never) -> None:
        """Documents in the places of their older forms, and what is left of these taken out."""
        nodes = self._transformed(documents, given)
        with self._kept.editing:
            if self.corpus is None:
                return self._insert(nodes, cancelled)
            old, new = self.ref_doc_info, {node.node_id for node in nodes}
            gone = [name for one in documents if one.id_ in old for name in old[one.id_].node_ids if name not in new]
            if nodes:
                self.corpus.refresh(map(document, nodes), progress=self._show_progress, cancelled=cancelled)
            if gone:
                self.corpus.remove(gone)
            self._noted()

    def _insert(self, nodes: Sequence[BaseNode], cancelled: Cancelled = never, **insert_kwargs: Any) -> None:
        _none_known(insert_kwargs)
        made = [document(node) for node in nodes]
        with self._kept.editing:
            if made and self.corpus is None:
                self._kept.ingest(made, self._show_progress, cancelled)
            elif made and self.corpus is not None:
                self.corpus.add(made, progress=self._show_progress, cancelled=cancelled)
            self._noted()

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id], **delete_kwargs)

    def _noted(self) -> None:
        """Tell the framework's index store how many documents there are."""
        self._index_struct.n_documents = len(self._texts())
        self._storage_context.index_store.add_index_struct(self._index_struct)

    def _texts(self) -> list[ReadText]:
        return [] if self.corpus is None else [read.document for read in self.corpus.documents]

    def _transformed(self, documents: Sequence[Document], given: dict[str, Any]) -> Sequence[BaseNode]:
        _none_known(given)
        return transformed(documents, self._transformations, self._show_progress)


def _none_known(given: dict[str, Any]) -> None:
    if given:
        raise TypeError(f"unknown arguments of an edit: {', '.join(given)}; leave them out")
