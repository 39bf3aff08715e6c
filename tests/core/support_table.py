"""Writes the README's table of model families from the matrix that the attach test runs: `make support`."""

from pathlib import Path

import transformers

from reattention_core.errors import UnsupportedModelError
from reattention_core.models.attach import Attachment
from tests.core.families import FAMILIES, REFUSED, UNDECIDED, build

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- families: written by make support -->\n", "<!-- end of families -->"


def attached() -> list[str]:
    """Families that attach with unchanged logits."""
    names = [*FAMILIES, *UNDECIDED]
    return sorted(name for name in names if reason(name, {**FAMILIES, **UNDECIDED}[name]) is None)


def reason(name: str, overrides: dict) -> str | None:
    """Why a family is refused, or None."""
    try:
        Attachment(build(name, overrides)).detach()
    except UnsupportedModelError as error:
        return str(error)
    return None


def table() -> str:
    """The README's section, markers not included."""
    works = attached()
    refused = sorted({*REFUSED, *UNDECIDED} - set(works))
    return (
        f"Attached with logits equal to the stock model's (transformers {transformers.__version__}, tiny random models, "
        f"float32, {len(works)} configurations): {', '.join(works)}.\n\n"
        f"Refused with the reason ({len(refused)}): {', '.join(refused)}.\n"
    )


def written() -> str:
    """What the README says now, markers not included."""
    text = README.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])
