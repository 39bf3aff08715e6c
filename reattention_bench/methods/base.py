"""The interface of every method, and how its name and parameters are written; knows no method."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from reattention_bench.case import Case, Group
from reattention_bench.tasks import Task
from reattention_core.corpus import Corpus
from reattention_core.documents import Document
from reattention_core.engine import Engine
from reattention_core.errors import InvalidRequestError
from reattention_core.select import Selector


@dataclass(frozen=True)
class Answered:
    """What a method made of a case.

    Attributes:
        text: the answer; of a reading task the mean negative log likelihood.
        tokens: tokens that attention looked at: the documents' and the question's.
        ranked: ids of the documents with the most evidence, best first; None where the method ranks nothing.
        note: what a reader of the row should know.
    """

    text: str
    tokens: int
    ranked: Sequence[str] | None = None
    note: str = ""


@dataclass
class Lab:
    """What every method works with.

    Attributes:
        engine: the model; attached, unless the method asks for the stock model.
        task: whose cases are being answered; the engine's configuration has its question form.
        group: the documents of the case.
        corpus: the same as the engine has read them, with the case's own; None for methods that need none.
    """

    engine: Engine
    task: Task
    group: Group
    corpus: Corpus | None = None


class Method(ABC):
    """One way to answer.

    Args:
        parameters: as given on the command line.

    Attributes:
        name: on the command line and in the rows.
        summary: one line for the help.
        stock: whether it needs the model detached, as transformers has it.
        over: whether it reads the corpus that the engine has read.
        quadratic: whether its cost grows with the square of the corpus.
        reads: whether it can measure how likely a text is.
        asks: whether it can answer questions.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stock: ClassVar[bool] = False
    over: ClassVar[bool] = False
    quadratic: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    asks: ClassVar[bool] = True
    allowed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: dict[str, Any]) -> None:
        for given in parameters:
            if given not in self.allowed:
                known = ", ".join(self.allowed) or "none"
                raise InvalidRequestError(f"method {self.name!r} has no parameter {given!r} (there are: {known})")
        self.parameters = parameters

    @property
    def label(self) -> str:
        """Name and parameters as on the command line."""
        return f"{self.name}:{write(self.parameters)}" if self.parameters else self.name

    def selector(self, window: int) -> Selector | None:
        """The rule by which a corpus is read, for methods over one."""
        return None

    @abstractmethod
    def answer(self, lab: Lab, case: Case) -> Answered:
        """Answer a case, or read its text.

        Raises:
            Exception: whatever went wrong; it becomes a row.
        """


def write(parameters: dict[str, Any]) -> str:
    """Parameters as they are given on the command line."""
    return ",".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in parameters.items()
    )


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters out of `name:first=1,second=text`.

    Raises:
        InvalidRequestError: a parameter has no value.
    """
    name, _, given = label.partition(":")
    parameters: dict[str, Any] = {}
    for one in filter(None, given.split(",")):
        field, sign, value = one.partition("=")
        if not sign:
            raise InvalidRequestError(f"{label!r}: parameters are written name:first=1,second=2, got {one!r}")
        try:
            parameters[field.strip()] = json.loads(value)
        except json.JSONDecodeError:
            parameters[field.strip()] = value
    return name, parameters


def context_text(lab: Lab, documents: Sequence[Document]) -> str:
    """Documents as a prompt has them, the title on a line of its own, as the engine reads them too."""
    return lab.group.prompt([(f"{d.title}\n" if d.title else "") + d.text for d in documents])


def asking(lab: Lab, case: Case) -> str:
    """The question in the engine's form."""
    return lab.engine.config.question_form.replace("{question}", case.question)
