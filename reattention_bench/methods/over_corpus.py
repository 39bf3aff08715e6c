"""The engine's own strategies over a corpus that it has read, and any selector by its import path; knows no task."""

from importlib import import_module
from typing import Any, ClassVar

from pydantic import ValidationError

from reattention_bench.case import Case
from reattention_bench.likelihood import read
from reattention_bench.methods.base import Answered, Lab, Method
from reattention_bench.methods.ranking import Watched, rank
from reattention_bench.methods.sink_local import SinkLocal
from reattention_core.errors import InvalidConfigError, InvalidRequestError
from reattention_core.select import SELECTORS, Selector

RULES: dict[str, type[Selector]] = {**SELECTORS, SinkLocal.name: SinkLocal}


class OverCorpus(Method):
    """A selection rule with parameters; those that are not given suit the model's window.

    Args:
        parameters: fields of the rule.
        rule: the rule's class.
        name: as on the command line.
    """

    name: str  # type: ignore[misc]  # each instance has its own
    summary = "pages chosen by attention"
    over, reads = True, True

    def __init__(self, parameters: dict[str, Any], rule: type[Selector], name: str) -> None:
        self.name, self.rule, self.allowed = name, rule, tuple(rule.model_fields)  # type: ignore[misc]
        super().__init__(parameters)
        if parameters:
            self._make({})

    def _make(self, base: dict[str, Any]) -> Selector:
        try:
            return self.rule(**{**base, **self.parameters})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or self.name
            raise InvalidConfigError(f"{self.label}: {field}: {first['msg']}, got {first['input']!r}") from None

    def selector(self, window: int) -> Selector:
        """The rule with its parameters."""
        return self._make(self.rule.for_window(window).model_dump())

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Ask the corpus, or read a text under the rule."""
        rule = self.selector(lab.engine.window)
        if lab.task.reads:
            likelihood = read(lab.engine, rule, case.ids, case.last)
            return Answered(repr(-likelihood.mean), likelihood.widest)
        assert lab.corpus is not None
        watched = Watched(inner=rule)
        answer = lab.corpus.ask(
            case.question,
            strategy=watched,
            max_new_tokens=lab.task.max_new_tokens,
            stop=lab.task.stop,
        )
        evidence = watched.evidence
        ranked = None if evidence is None else rank(lab.corpus, evidence)
        return Answered(answer.text, answer.usage.window_tokens, ranked)


def rule_by_path(path: str) -> type[Selector]:
    """A selector's class by `module.of.mine.Class`.

    Raises:
        InvalidRequestError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found: ClassVar[Any] = getattr(import_module(module), name)  # type: ignore[misc]
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequestError(f"method {path!r} is no selector that can be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Selector)):
        raise InvalidRequestError(f"method {path!r} is no Selector")
    return found
