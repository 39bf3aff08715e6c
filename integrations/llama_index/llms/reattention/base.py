"""A LlamaIndex language model over an engine: all eight endpoints, and tools; knows no attention and no indices."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from llama_index.llms.reattention.messages import (
    Make,
    achunks,
    chat_response,
    chunks,
    cited_response,
    completion_response,
    plain,
    whole,
)
from llama_index.llms.reattention.structured import StructuredPredict
from llama_index.llms.reattention.tools import prepared, selections
from reattention_core import AnswerStream
from reattention_core.answer import finish
from reattention_core.frameworks.conversation import STRUCTURE, Message, afinish
from reattention_core.frameworks.model import Answering

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class ReAttentionLLM(Answering, StructuredPredict, FunctionCallingLLM):
    """A local model that reads prompts longer than its window, and answers from saved corpora.

    Making one is instant: weights load at the first answer, once for all equal instances in the process. Every call may set
    temperature, top_p, max_tokens, stop, seed and repetition_penalty anew. `raw` of a response holds the usage
    (`prompt_tokens` counts the `cached_tokens` of the corpus too), the finish reason, and with a corpus the sources.
    `Settings.tokenizer = llm.tokenizer` has the framework count with the model's own tokenizer.

    Example:
        >>> from llama_index.core import Settings
        >>> from llama_index.llms.reattention import ReAttentionLLM
        >>> Settings.llm = ReAttentionLLM()
        >>> print(Settings.llm.complete("What is the capital of France?"))
    """

    model_config = ConfigDict(extra="forbid")

    citations: bool = Field(
        default=False,
        description="Puts a CitationBlock into the message for every passage of the corpus that was read.",
    )

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised instances carry."""
        return "ReAttentionLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What the framework plans with; loads the tokenizer, not the weights."""
        return LLMMetadata(
            context_window=self._capacity(),
            num_output=self.max_tokens,
            is_chat_model=self.tokenizer.chat_template is not None,
            # A question to a corpus calls no tools; the corpus can be one.
            is_function_calling_model=self.corpus is None,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """What traces show: the fields. Every call asks for it, in an event loop too, and metadata would load a tokenizer."""
        return {**self.to_dict(), "model_name": self.model}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return whole(finish(self._chat(messages, kwargs)), self._response)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like `chat`; cancelling it stops the model."""
        return whole(await afinish(await asyncio.to_thread(self._chat, messages, kwargs)), self._response)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Like `chat`, as the text grows; the last chunk has the usage. Closing it stops the model."""
        return chunks(self._chat(messages, kwargs), self._response)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Like `stream_chat`."""
        return achunks(await asyncio.to_thread(self._chat, messages, kwargs), self._response)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; continue it where it is formatted, or where the model has no chat template."""
        return whole(finish(self._complete(prompt, formatted, kwargs)), completion_response)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Like `complete`; cancelling it stops the model."""
        stream = await asyncio.to_thread(self._complete, prompt, formatted, kwargs)
        return whole(await afinish(stream), completion_response)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Like `complete`, as the text grows; the last chunk has the usage. Closing it stops the model."""
        return chunks(self._complete(prompt, formatted, kwargs), completion_response)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Like `stream_complete`."""
        return achunks(await asyncio.to_thread(self._complete, prompt, formatted, kwargs), completion_response)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of a chat that may call tools."""
        asked = [ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg]
        messages = [*(chat_history or []), *(message for message in asked if message is not None)]
        return {"messages": messages, **prepared(tools, allow_parallel_tool_calls, tool_required, kwargs)}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in a response.

        Raises:
            ValueError: there is none, and that is an error.
        """
        return selections(response, error_on_no_tool_call)

    @property
    def _response(self) -> Make[ChatResponse]:
        return cited_response if self.citations else chat_response

    def _chat(self, messages: Sequence[ChatMessage], given: dict[str, Any]) -> AnswerStream:
        return self._start(plain(messages), given)

    def _complete(self, prompt: str, formatted: bool, given: dict[str, Any]) -> AnswerStream:
        if formatted:
            return self._start(prompt, given)
        if self._engine().tokenizer.chat_template is None:
            return self._start(self.completion_to_prompt(prompt), given)  # type: ignore[misc]  # set by the base class
        return self._start([{"role": "user", "content": prompt}], given)

    def _start(self, asked: str | list[Message], given: dict[str, Any]) -> AnswerStream:
        structure = {name: given[name] for name in STRUCTURE if name in given}
        settings = {name: value for name, value in given.items() if name not in structure}
        return self._begin(asked, settings, structure)
