"""Every setting of the engine, checked once when it is made; knows no model and does no work."""

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from reattention_core.errors import InvalidConfigError

SINK_TEXT = (
    "The following documents are all true. Read them with care, because questions about what they say will be asked at the "
    "end."
)
"""An instruction: noise in its place halves a small model's answers (docs/quality.md)."""

Settings = TypeVar("Settings", bound=BaseModel)


def _as_tuple(stop: object) -> object:
    """One string is taken as the only one."""
    stop = (stop,) if isinstance(stop, str) else stop
    return tuple(stop) if isinstance(stop, list) else stop


Stop = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
    BeforeValidator(_as_tuple),
    Field(max_length=16),
]
"""Up to 16 strings that end a text."""


Budget = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, le=1)]
"""Bytes, or a share of what is free."""


class Config(BaseModel):
    """How an engine reads documents and asks its model.

    Attributes:
        strategy: the selection rule by name, for asking and for `joint` ingest; a call may name another.
        sink: text that stands before every document (the attention sink, ReAttention's global part): as many whole sentences as
            fit in 32 tokens, which line breaks fill up.
        question_form: what a question becomes; docs/quality.md has what other forms are worth.
        stop: strings that end an answer; a blank line does not where the line before it announces more by a colon.
        max_new_tokens: tokens of an answer at most, unless a call says otherwise.
        cache_dtype: type of cached keys and values; `auto` is the model's, or bfloat16 for a float32 model.
        reach: newest tokens of its own document that a chunk of it sees in `independent` ingest, besides the sink; half of
            them are the chunk. Documents no longer than this are read by exact attention.
        ingest_tokens: tokens in one forward pass of ingest; when left out, 4,096 on a CPU and on a GPU as many as an eighth
            of its free memory holds, 65,536 at most.
        prefix_bytes: memory, on the model's device, for what was read of prompts without a corpus (their beginnings, and long
            texts that they asked something of), so that the next prompt that has it need not read it again; when left out, a
            quarter of what is free when the engine is made. 0 keeps nothing.
        device_bytes: memory, where the model runs, for keys and values of corpora and for the indexes of those in lower tiers;
            bytes, or a share (0.5) of what is free when the engine is made; all that is free when left out. A corpus without
            room there goes to the host's memory, or further to the disk if it has a name.
        host_bytes: memory of the host for keys and values of corpora, in the same way. A CPU has a host tier only where
            `device_bytes` is set.
        max_waiting: requests that may wait for the model at a time; one more is refused.
        cuda_graphs: on a GPU, passages are compared and answers written by replaying recorded passes, which is several times
            quicker than running the same ones launch by launch and gives the same answers; for models whose weights and cached
            keys are of one type. A question of a new shape records first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    strategy: Literal["consensus", "reattention", "longheads"] = "consensus"
    sink: str = Field(default=SINK_TEXT, min_length=1)
    question_form: str = "\nQuestion: {question}\nAnswer:"
    stop: Stop = ("\nQuestion:", "\n\n")
    max_new_tokens: int = Field(default=64, ge=1)
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    reach: int = Field(default=2048, ge=32)
    ingest_tokens: int | None = Field(default=None, ge=32)
    prefix_bytes: int | None = Field(default=None, ge=0)
    device_bytes: Budget | None = None
    host_bytes: Budget | None = None
    max_waiting: int = Field(default=64, ge=0)
    cuda_graphs: bool = True

    @field_validator("question_form")
    @classmethod
    def _one_question(cls, form: str) -> str:
        if form.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once")
        return form


class Generation(BaseModel):
    """How tokens are drawn.

    Attributes:
        max_new_tokens: tokens at most.
        temperature: 0 takes the likeliest token; above it, samples.
        top_p: samples only from the likeliest tokens that together have this probability.
        stop: strings that end the text; they are not part of it.
        seed: makes sampling repeatable.
        repetition_penalty: above 1, what was already said, or stands in the question, becomes less likely; small models that
            write JSON need about 1.05. The checkpoint's own setting when left out.
        timeout: seconds that the answer may take, waiting for the model included; any time when left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    stop: Stop = ()
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    repetition_penalty: float | None = Field(default=None, ge=1, le=2)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)


def checked(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Make settings from keyword arguments.

    Args:
        kind: the settings' class.
        values: its fields.

    Raises:
        InvalidConfigError: a key is unknown (the closest one is named) or a value is not allowed.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            allowed = ", ".join(kind.model_fields)
            raise InvalidConfigError(f"unknown setting {name!r}{hint} (allowed: {allowed})") from None
        raise InvalidConfigError(f"{name}: {first['msg']}, got {first['input']!r}") from None
