"""LlamaIndex nodes as documents of a corpus, and passages of the corpus as nodes; knows no index and no engine.

A node is a document: its id is the document's, and what the framework would show a model before its text, the metadata, is
what the model reads first, the title.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.ingestion import run_transformations
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)

from reattention_core import Document, Source
from reattention_core.errors import InvalidRequestError
from reattention_core.sources import ReadDocument

OWN = "_llama_index"
"""What the framework must know of a document besides text and metadata stands in the metadata under this name."""

HIDDEN = ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
"""Fields of a node that say which metadata are not shown; passages have them of their node."""


def transformed(
    documents: Sequence[BaseNode], transformations: Sequence[TransformComponent], show_progress: bool
) -> Sequence[BaseNode]:
    """The nodes of documents.

    Raises:
        InvalidRequestError: they are something else, such as plain texts.
    """
    if isinstance(documents, str) or (wrong := [one for one in documents if not isinstance(one, BaseNode)]):
        got = type(documents if isinstance(documents, str) else wrong[0]).__name__
        raise InvalidRequestError(f"documents are a list of LlamaIndex's Documents, got {got}: [Document(text=…)]")
    return run_transformations(documents, transformations, show_progress=show_progress)


class WholeDocuments(TransformComponent):
    """Makes one node of every document, because nothing has to be cut."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Nodes with the ids, texts and metadata of the documents, and with the documents as their sources."""
        return [self._whole(node) for node in nodes]

    def _whole(self, node: BaseNode) -> BaseNode:
        if node.source_node is not None:
            return node
        kept = {name: getattr(node, name) for name in (*HIDDEN, "metadata", "metadata_template", "metadata_separator")}
        source = {NodeRelationship.SOURCE: node.as_related_node_info()}
        return TextNode(id_=node.node_id, text=_text(node), relationships=source, **kept)


def document(node: BaseNode) -> Document:
    """The document of a corpus that a node becomes.

    Raises:
        InvalidRequestError: the node is no text.
    """
    source = node.source_node or node.as_related_node_info()
    hidden = {name: getattr(node, name) for name in HIDDEN}
    own = {"ref_doc_id": source.node_id, "hash": source.hash, **hidden}
    # Dates and the like, which JSON does not know, become text, as they do in the framework's own stores.
    metadata = json.loads(json.dumps({**node.metadata, OWN: own}, default=str))
    return Document(
        text=_text(node),
        title=node.get_metadata_str(MetadataMode.LLM),
        id=node.node_id,
        source=metadata.get("file_path"),
        metadata=metadata,
    )


def _text(node: BaseNode) -> str:
    text = node.get_content(MetadataMode.NONE)
    if not text.strip() and getattr(node, "image_resource", None) is not None:
        raise InvalidRequestError(f"node {node.node_id!r} is an image: this model reads text only, leave it out")
    return text


def ref_doc_id(read: Document) -> str:
    """The id of the LlamaIndex document that a document of a corpus is, or is a part of."""
    return str(_own(read).get("ref_doc_id", read.id))


def ref_doc_hash(read: Document) -> str | None:
    """What that LlamaIndex document was like when it was read."""
    found = _own(read).get("hash")
    return None if found is None else str(found)


def metadata(read: Document) -> dict[str, Any]:
    """The metadata that the document had; of one that did not come from LlamaIndex, its title and source are among them."""
    given = {name: value for name, value in read.metadata.items() if name != OWN}
    if OWN not in read.metadata:
        given = {**{name: text for name in ("title", "source") if (text := getattr(read, name))}, **given}
    return given


def passages(sources: Iterable[Source | Mapping[str, Any]], documents: Sequence[ReadDocument]) -> list[NodeWithScore]:
    """Passages as nodes: exact text, place in the document (`start_char_idx`, `end_char_idx`) and score.

    Args:
        sources: the passages, as the corpus gives them or dumped to dicts.
        documents: of the corpus.
    """
    found = [source if isinstance(source, Source) else Source(**source) for source in sources]
    wanted = {source.document_id for source in found}
    known = {read.document.id: read.document for read in documents if read.document.id in wanted}
    return [NodeWithScore(node=_passage(one, known[one.document_id]), score=one.score) for one in found]


def _passage(source: Source, read: Document) -> TextNode:
    own, about = _own(read), metadata(read)
    origin = RelatedNodeInfo(node_id=ref_doc_id(read), metadata=about, hash=ref_doc_hash(read))
    return TextNode(
        id_=f"{source.document_id}:{source.start}-{source.end}",
        text=source.quote,
        start_char_idx=source.start,
        end_char_idx=source.end,
        metadata=about,
        relationships={NodeRelationship.SOURCE: origin},
        **{name: own[name] for name in HIDDEN if name in own},
    )


def _own(read: Document) -> Mapping[str, Any]:
    found = read.metadata.get(OWN)
    return found if isinstance(found, Mapping) else {}
