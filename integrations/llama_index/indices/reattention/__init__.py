"""ReAttention as a LlamaIndex index; knows only where it is."""

try:
    from llama_index.indices.reattention.base import ReAttentionIndex
    from llama_index.indices.reattention.query_engine import ReAttentionQueryEngine
    from llama_index.indices.reattention.retriever import ReAttentionRetriever
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("llama_index.core"):
        raise
    raise ImportError("LlamaIndex is not installed: pip install 'reattention[llama-index]'") from error

__all__ = ["ReAttentionIndex", "ReAttentionQueryEngine", "ReAttentionRetriever"]
