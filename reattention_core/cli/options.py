"""The options that several commands share, and their checks; knows no command."""

from typing import Annotated, Any, Literal

import typer

Mode = Literal["independent", "joint"]
Strategy = Literal["consensus", "reattention", "longheads"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a saved corpus.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

StrategyOption = Annotated[
    Strategy | None, typer.Option(help="Rule by which passages are selected.  [default: consensus]")
]
MaxNewTokensOption = Annotated[int | None, typer.Option(help="Tokens of the answer at most.  [default: 64]")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 takes the likeliest words; above it, words are drawn.  [default: 0]")
]
TopPOption = Annotated[float | None, typer.Option(help="Draw only from the likeliest words with this probability.")]
SeedOption = Annotated[int | None, typer.Option(help="Makes drawing repeatable.")]

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder or GGUF file: a corpus needs the model that read it.  [default: that one; at first the bundled one]"
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, …  [default: the first GPU, or the CPU]")]
DTypeOption = Annotated[DType, typer.Option(help="Type of the model's weights.")]


def generation(
    max_new_tokens: int | None, temperature: float | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """The settings that were given, checked now: loading a model takes seconds.

    Raises:
        InvalidConfigError: one has a value it cannot have.
    """
    from reattention_core.config import Config, Generation, checked

    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    given = {name: value for name, value in settings.items() if value is not None}
    checked(Generation, {"max_new_tokens": Config().max_new_tokens, **given})
    return given
