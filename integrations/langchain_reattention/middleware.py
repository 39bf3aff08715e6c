"""Agent middleware that has every answer rest on a corpus; knows no agent and no model. Needs the package `langchain`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NotRequired

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from langchain_reattention.retrievers import ReAttentionRetriever

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("langchain"):
        raise
    raise ImportError("LangChain's agents are not installed: pip install 'reattention[agents]'") from error

HEADING = "Answer from these passages where they help:"
"""Stands before the passages."""


class CorpusState(AgentState[Any]):
    """What an agent with a corpus knows besides its messages.

    Attributes:
        passages: what the newest question asks for, most evidence first; in what `invoke` returns, too.
    """

    passages: NotRequired[list[Document]]


class CorpusMiddleware(AgentMiddleware[CorpusState, Any, Any]):
    """Puts the passages that the newest question asks for in front of the conversation, behind the system prompt.

    They are looked up once for a question, by its words alone, and shown to the model at every step of the answer. The saved
    messages of the agent are not changed.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_reattention import ChatReAttention
        >>> from langchain_reattention.middleware import CorpusMiddleware
        >>> agent = create_agent(ChatReAttention(), middleware=[CorpusMiddleware("handbook")])
        >>> state = agent.invoke({"messages": [{"role": "user", "content": "How long is the warranty?"}]})
        >>> state["passages"][0].metadata["score"]

    Args:
        corpus: name of the saved corpus.
        retriever: further fields of `ReAttentionRetriever`, such as `k`.
    """

    state_schema = CorpusState

    def __init__(self, corpus: str, **retriever: Any) -> None:
        self.tools = ()
        self._retriever = ReAttentionRetriever(corpus=corpus, **retriever)

    def before_agent(self, state: CorpusState, runtime: Any) -> dict[str, Any]:
        """Look the newest question up."""
        question = _question(state["messages"])
        return {"passages": self._retriever.invoke(question) if question else []}

    async def abefore_agent(self, state: CorpusState, runtime: Any) -> dict[str, Any]:
        """Like `before_agent`."""
        question = _question(state["messages"])
        return {"passages": await self._retriever.ainvoke(question) if question else []}

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Show the model the passages."""
        return handler(_with_passages(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Like `wrap_model_call`."""
        return await handler(_with_passages(request))


def _question(messages: Sequence[BaseMessage]) -> str:
    asked = [message for message in messages if isinstance(message, HumanMessage)]
    return str(asked[-1].text).strip() if asked else ""


def _with_passages(request: ModelRequest[Any]) -> ModelRequest[Any]:
    found: list[Document] = request.state.get("passages", [])  # type: ignore[assignment]  # the request's state is anybody's
    if not found:
        return request
    texts = [f"{one.metadata['title']}\n{one.page_content}".strip() for one in found]
    parts = [*filter(None, [request.system_prompt]), HEADING, *texts]
    return request.override(system_message=SystemMessage("\n\n".join(parts)))
