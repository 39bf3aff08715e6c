"""ReAttention as a LangChain chat model, retriever and tool; knows only where they are.

Agents' middleware is in `langchain_reattention.middleware`, because it needs the larger package `langchain`.
"""

try:
    from langchain_core.messages.block_translators import register_translator

    from langchain_reattention.chat_models import ChatReAttention
    from langchain_reattention.citations import content_blocks
    from langchain_reattention.messages import PROVIDER
    from langchain_reattention.retrievers import ReAttentionRetriever
    from langchain_reattention.tools import corpus_tool
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("langchain_core"):
        raise
    raise ImportError("LangChain is not installed: pip install 'reattention[langchain]'") from error

# The framework's way to be asked for the standard blocks of one's own messages; it touches nobody else's.
register_translator(PROVIDER, content_blocks, content_blocks)

__all__ = ["ChatReAttention", "ReAttentionRetriever", "corpus_tool"]
