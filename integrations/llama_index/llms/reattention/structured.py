"""LlamaIndex's structured prediction by constrained decoding: the answer is the object, nothing is parsed out of text."""

from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeVar

from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.prompts import PromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

dispatcher = get_dispatcher(__name__)

Object = TypeVar("Object", bound=BaseModel)


class StructuredPredict(LLM):
    """Takes the place of the framework's own prediction, which calls a tool or parses text."""

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """An object of a class, which the model writes as JSON.

        Args:
            output_cls: its class.
            prompt: what is asked.
            llm_kwargs: settings of the call.
            prompt_args: fill the prompt.

        Raises:
            IncompleteAnswerError: the tokens ran out inside of it.
            ValidationError: the class asks for more than its JSON schema says.
        """
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        response = self.chat(self._get_messages(prompt, **prompt_args), **_settings(output_cls, llm_kwargs))
        made = output_cls.model_validate_json(response.message.content or "")
        dispatcher.event(LLMStructuredPredictEndEvent(output=made))
        return made

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Object:
        """Like `structured_predict`."""
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        response = await self.achat(self._get_messages(prompt, **prompt_args), **_settings(output_cls, llm_kwargs))
        made = output_cls.model_validate_json(response.message.content or "")
        dispatcher.event(LLMStructuredPredictEndEvent(output=made))
        return made

    def _structured_stream_call(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Object | FlexibleModel, None, None]:
        """The object as it grows; the framework's stream_structured_predict gives it out."""
        messages, growing = self._get_messages(prompt, **prompt_args), Growing(output_cls)
        for response in self.stream_chat(messages, **_settings(output_cls, llm_kwargs)):
            if (made := growing(response.message.content or "")) is not None:
                yield made
        yield output_cls.model_validate_json(growing.text)

    async def _structured_astream_call(
        self,
        output_cls: type[Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Object | FlexibleModel, None]:
        """Like `_structured_stream_call`."""
        messages, growing = self._get_messages(prompt, **prompt_args), Growing(output_cls)
        stream = await self.astream_chat(messages, **_settings(output_cls, llm_kwargs))

        async def parts() -> AsyncGenerator[Object | FlexibleModel, None]:
            async for response in stream:
                if (made := growing(response.message.content or "")) is not None:
                    yield made
            yield output_cls.model_validate_json(growing.text)

        return parts()


class Growing:
    """Objects of JSON that is still being written.

    Args:
        output_cls: the class that the whole will have; of a part every field may be missing.

    Attributes:
        text: the newest JSON.
    """

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._loose, self.text = create_flexible_model(output_cls), ""
        self._last: FlexibleModel | None = None

    def __call__(self, text: str) -> FlexibleModel | None:
        """The object so far, if there is more of it than before."""
        self.text = text
        try:
            made = self._loose.model_validate(from_json(text, allow_partial="trailing-strings"))
        except (ValueError, ValidationError):
            return None
        if made == self._last:
            return None
        self._last = made
        return made


def _settings(output_cls: type[BaseModel], given: dict[str, Any] | None) -> dict[str, Any]:
    return {**(given or {}), "schema": output_cls.model_json_schema()}
