"""A LangChain chat model over an engine: answers, streams, tools and structured output; knows no attention."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, SecretStr

from langchain_reattention.binding import Tools, bound_tools, schema_of, structured
from langchain_reattention.errors import ModelTooSlowError, PromptTooLongError
from langchain_reattention.messages import PROVIDER, about, call_chunks, plain, whole
from reattention_core import Answer, AnswerStream
from reattention_core.answer import finish
from reattention_core.errors import AnswerTimeoutError, ContextTooLongError, InvalidConfigError
from reattention_core.frameworks.conversation import (
    CALL_SETTINGS,
    STRUCTURE,
    afinish,
    pulled,
)
from reattention_core.frameworks.model import Answering
from reattention_core.frameworks.shared import corpus_digest
from reattention_core.models.loading import BUNDLED

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile


class ChatReAttention(Answering, BaseChatModel):
    """A local model that reads prompts longer than its window, and answers from saved corpora.

    Making one is instant: weights load at the first answer, once for all equal instances in the process. Every call may set
    model, temperature, top_p, max_tokens, stop, seed and repetition_penalty anew. Answers carry `usage_metadata`
    (`input_tokens` counts the corpus's `cache_read` too), and with a corpus `response_metadata["sources"]`, which are the
    citations in `content_blocks`.

    Example:
        >>> from langchain_reattention import ChatReAttention
        >>> print(ChatReAttention().invoke("What is the capital of France?").content)

    Args:
        model: the bundled model, a hub id, a folder or the path of a GGUF file; `model_name` is another name for it.
        corpus: name of a saved corpus to answer from.
        device: where the model runs; the first GPU if there is one.
        dtype: type of the weights.
        strategy: the rule that selects what is read.
        temperature: 0 takes the likeliest token; above it, samples.
        top_p: samples from the likeliest tokens of this probability.
        max_tokens: tokens of an answer at most.
        stop: strings that end an answer; `stop_sequences` is another name for it.
        seed: makes sampling repeatable.
        repetition_penalty: above 1, keeps a small model from saying the same again and again; see `Generation`.
        engine: a ready engine, in place of model, device, dtype and strategy.
        context_window: tokens of a prompt and its answer at most; what memory holds when left out.
        timeout: seconds that an answer may take, waiting included.
        max_retries, api_key: LangChain's for models behind a network; accepted, and of no effect here.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    too_long: ClassVar[type[ContextTooLongError]] = PromptTooLongError
    too_late: ClassVar[type[AnswerTimeoutError]] = ModelTooSlowError

    model: str = Field(default=BUNDLED, alias="model_name")
    stop: list[str] | str | None = Field(default=None, alias="stop_sequences")
    streaming: bool = False
    max_retries: int | None = Field(default=None, exclude=True, repr=False)
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)

    @property
    def _llm_type(self) -> str:
        return "chat-reattention"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on: LangChain's caches are keyed by it."""
        fields = ("model", "corpus", "device", "dtype", "strategy", *CALL_SETTINGS)
        digest = None if self.corpus is None else corpus_digest(self.engine, self.corpus)
        return {**{name: getattr(self, name) for name in fields}, "corpus_digest": digest}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        own = [self.stop] if isinstance(self.stop, str) else self.stop
        params = super()._get_ls_params(stop=stop or own, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = kwargs.get("model") or self.model
        return params

    def _resolve_model_profile(self) -> "ModelProfile":
        return {
            "max_input_tokens": self._capacity(),
            "max_output_tokens": self.max_tokens,
            "text_inputs": True,
            "text_outputs": True,
            "tool_calling": True,
            "tool_choice": True,
            "tool_call_streaming": False,
            "structured_output": True,
        }

    def bind_tools(
        self,
        tools: Tools,
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call tools; their arguments always follow the tools' schemas.

        Args:
            tools: functions, pydantic classes, LangChain tools or dicts.
            tool_choice: "auto" (the default), "any", "none", or the name of the tool to call.
            parallel_tool_calls: whether an answer may have several calls; small models then often repeat one.
            strict: of no effect, because schemas are always followed.
            kwargs: further arguments of every call.

        Raises:
            InvalidConfigError: a tool or the choice is not allowed.
        """
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**bound_tools(tools, tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with objects of a schema, and with nothing else.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema or a function's schema.
            method: "json_schema" and "json_mode" answer with JSON, "function_calling" with a call.
            include_raw: give a dict of "raw", "parsed" and "parsing_error" in place of the object.
            strict: of no effect, because schemas are always followed.
            kwargs: none are known.

        Raises:
            InvalidConfigError: the method or an argument is unknown.
        """
        if kwargs:
            raise InvalidConfigError(
                f"unknown arguments of with_structured_output: {', '.join(kwargs)}; leave them out"
            )
        return structured(self.bind, self.bind_tools, schema, method, include_raw)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the model's own tokenizer; the weights need not be loaded."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(finish(self._start(messages, stop, kwargs)), kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        stream = await asyncio.to_thread(self._start, messages, stop, kwargs)
        return self._result(await afinish(stream), kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(self._start(messages, stop, kwargs)) as stream:
            for piece in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield self._last(stream.answer, kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        stream = await asyncio.to_thread(self._start, messages, stop, kwargs)
        async with aclosing(pulled(stream)) as pieces:
            async for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield self._last(stream.answer, kwargs)

    def _start(self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> AnswerStream:
        model = given.get("model")
        # LangChain leaves `stream` among the arguments after acting on it, and schemas are followed without `strict`.
        given = {name: value for name, value in given.items() if name not in ("stream", "strict", "model")}
        asked_for = {name: given.pop(name, None) for name in STRUCTURE if name != "schema"}
        asked_for["schema"] = schema_of(given.pop("response_format", None))
        return self._begin(plain(messages), {**given, "stop": stop}, asked_for, model)

    def _result(self, answer: Answer, given: dict[str, Any]) -> ChatResult:
        message = whole(answer, given.get("model") or self.model, self.corpus is not None)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last(self, answer: Answer, given: dict[str, Any]) -> ChatGenerationChunk:
        """The chunk without text that ends a stream: usage must be in one chunk only, because chunks are added up."""
        rest = about(answer, given.get("model") or self.model, self.corpus is not None)
        chunk = AIMessageChunk(content="", tool_call_chunks=call_chunks(answer), chunk_position="last", **rest)
        return ChatGenerationChunk(message=chunk)
