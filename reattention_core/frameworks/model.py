"""The fields that a framework's classes have in common, and the engine and corpus they lead to; knows no framework's types."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from transformers import PreTrainedTokenizerBase

from reattention_core.answer import AnswerStream
from reattention_core.cache.pages import PAGE
from reattention_core.config import Generation, checked
from reattention_core.corpus import Corpus
from reattention_core.engine import Engine
from reattention_core.errors import AnswerTimeoutError, ContextTooLongError, InvalidConfigError
from reattention_core.frameworks.conversation import CAPACITY, Message, generation, in_words_of, start
from reattention_core.frameworks.shared import loaded_engine, shared_corpus, shared_engine, shared_tokenizer
from reattention_core.memory import prompt_tokens
from reattention_core.models.loading import BUNDLED


class Located(BaseModel):
    """Where an engine comes from: its settings, or a ready one in their place."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(default=BUNDLED, description="The bundled model, a hub id, a folder or a GGUF file.")
    corpus: str | None = Field(default=None, description="Name of a saved corpus to answer from.")
    device: str | None = Field(default=None, description="Where the model runs; the first GPU if there is one.")
    dtype: str = Field(default="auto", description="Type of the weights.")
    engine: Engine | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A ready engine, in place of the settings of one.",
    )
    _opened: Corpus | None = PrivateAttr(default=None)
    _bound: Corpus | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine is not None:
            fields, own = type(self).model_fields, ("device", "dtype", "strategy")
            extra = [name for name in own if name in fields and getattr(self, name) != fields[name].default]
            if extra:
                raise InvalidConfigError(f"engine brings its own {', '.join(extra)}: leave out one or the other")
            if "model" not in self.model_fields_set:
                attached = self.engine.attachment.model
                self.model = attached.name_or_path or attached.config.model_type
        return self

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; the weights need not be loaded."""
        return self.engine.tokenizer if self.engine is not None else shared_tokenizer(self.model)

    def _engine(self, model: str | None = None) -> Engine:
        """The engine, loaded if it was not yet; of another model if one call asks for that."""
        if self.engine is not None and model in (None, self.model):
            return self.engine
        return shared_engine(model or self.model, self.device, self.dtype, getattr(self, "strategy", None))

    def over(self, corpus: Corpus) -> Self:
        """The same, over an open corpus, which may have no name."""
        other = self.model_copy()
        other._bound = corpus
        return other

    def _corpus(self, engine: Engine) -> Corpus | None:
        """The corpus, if there is one."""
        if self._bound is not None:
            return self._bound
        # Held from here on, or the next question would open it again.
        self._opened = None if self.corpus is None else shared_corpus(engine, self.corpus)
        return self._opened


class Answering(Located):
    """What a model of a framework has besides: how it answers. One call may set all of these anew but the strategy."""

    too_long: ClassVar[type[ContextTooLongError]] = ContextTooLongError
    """Raised for a prompt beyond the capacity; where a framework has an error for that, one that is both."""
    too_late: ClassVar[type[AnswerTimeoutError]] = AnswerTimeoutError
    """Likewise, for an answer beyond its timeout."""

    strategy: str | None = Field(default=None, description="The rule that selects what is read.")
    temperature: float = Field(default=0.0, description="0 takes the likeliest token; above it, samples.")
    top_p: float = Field(default=1.0, description="Samples from the likeliest tokens of this probability.")
    max_tokens: int = Field(default=256, description="Tokens of an answer at most.")
    stop: list[str] | str | None = Field(default=None, description="Strings that end an answer.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    repetition_penalty: float | None = Field(
        default=None, description="Above 1, keeps a small model from saying the same again and again."
    )

    context_window: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of a prompt and its answer at most; what memory holds when left out. Longer ones are an error.",
    )
    timeout: float | None = Field(default=None, gt=0, description="Seconds that an answer may take, waiting included.")

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        checked(Generation, generation(self, {}))
        return self

    def _capacity(self) -> int:
        """Tokens of a prompt and its answer at most, for frameworks that plan with it; the weights need not be loaded."""
        if self.context_window is not None:
            return self.context_window
        engine = self.engine or loaded_engine(self.model, self.device, self.dtype, self.strategy)
        if engine is None:
            return CAPACITY
        # Beside a corpus, a question must leave room in the model's window for the sink and a page.
        return prompt_tokens(engine.attachment) if self.corpus is None else engine.window - 2 * PAGE

    def _begin(
        self,
        asked: str | list[Message],
        given: Mapping[str, Any],
        structure: Mapping[str, Any],
        model: str | None = None,
    ) -> AnswerStream:
        """Begin an answer; see `start`.

        Args:
            asked: a text or messages.
            given: what the call sets.
            structure: what the answer is held to.
            model: another one, for this call.
        """
        settings, engine = {**generation(self, given), "timeout": self.timeout}, self._engine(model)
        try:
            stream = start(engine, self._corpus(engine), asked, settings, structure, self.context_window)
        except ContextTooLongError as error:
            raise self.too_long(str(error), n_tokens=error.n_tokens, limit=error.limit) from error
        return in_words_of(stream, self.too_late)
