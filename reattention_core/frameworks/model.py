"""The fields that a framework's classes have in common, and the engine and corpus they lead to; knows no framework's types."""

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from reattention_core.config import Generation, checked
from reattention_core.corpus import Corpus
from reattention_core.engine import Engine
from reattention_core.errors import InvalidConfigError
from reattention_core.frameworks.conversation import generation
from reattention_core.frameworks.shared import shared_corpus, shared_engine, shared_tokenizer
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

    def _corpus(self, engine: Engine) -> Corpus | None:
        """The corpus, if there is one."""
        # Held from here on, or the next question would open it again.
        self._opened = None if self.corpus is None else shared_corpus(engine, self.corpus)
        return self._opened


class Answering(Located):
    """What a model of a framework has besides: how it answers. One call may set all of these anew but the strategy."""

    strategy: str | None = Field(default=None, description="The rule that selects what is read.")
    temperature: float = Field(default=0.0, description="0 takes the likeliest token; above it, samples.")
    top_p: float = Field(default=1.0, description="Samples from the likeliest tokens of this probability.")
    max_tokens: int = Field(default=256, description="Tokens of an answer at most.")
    stop: list[str] | str | None = Field(default=None, description="Strings that end an answer.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    repetition_penalty: float | None = Field(
        default=None, description="Above 1, keeps a small model from saying the same again and again."
    )

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        checked(Generation, generation(self, {}))
        return self
