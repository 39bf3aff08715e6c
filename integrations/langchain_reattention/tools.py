"""A saved corpus as a tool of an agent; knows no agent and no model."""

from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools.retriever import create_retriever_tool

from langchain_reattention.retrievers import ReAttentionRetriever


def corpus_tool(corpus: str, description: str, *, name: str | None = None, **retriever: Any) -> BaseTool:
    """A tool that looks a question up in a corpus: the passages' text for the model, the passages themselves as artifact.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_reattention import ChatReAttention, corpus_tool
        >>> find = corpus_tool("handbook", "Looks up what the handbook says about the product.")
        >>> agent = create_agent(ChatReAttention(model="a/model-with-tools"), [find])

    Args:
        corpus: name of the saved corpus.
        description: what the model is told of it.
        name: of the tool; the corpus's, with '_' for '.', when left out.
        retriever: further fields of `ReAttentionRetriever`, such as `k`.
    """
    return create_retriever_tool(
        ReAttentionRetriever(corpus=corpus, **retriever),
        name or corpus.replace(".", "_"),
        description,
        response_format="content_and_artifact",
    )
