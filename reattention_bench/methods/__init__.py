"""How cases are answered, one idea a file, each behind the interface of `base`."""

import difflib

from reattention_bench.methods.base import Answered, Lab, Method, parse
from reattention_bench.methods.over_corpus import RULES, OverCorpus, rule_by_path
from reattention_bench.methods.prompted import ByBm25, ByEmbeddings, Closed, Oracle, Truncate
from reattention_bench.methods.stock import DynamicNtk, Full, Yarn
from reattention_core.errors import InvalidRequestError

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Full, DynamicNtk, Yarn, Truncate, Closed, Oracle, ByBm25, ByEmbeddings)
}

NAMES = (*RULES, *METHODS)

__all__ = ["METHODS", "NAMES", "Answered", "Lab", "Method", "method"]


def method(label: str) -> Method:
    """A method by `name` or `name:parameter=value,…`; a selector of yours by `module.Class`.

    Raises:
        InvalidRequestError: there is none of that name, or it has no such parameter.
        ImportError: it needs a package that is not installed.
    """
    name, parameters = parse(label)
    if name in RULES:
        return OverCorpus(parameters, RULES[name], name)
    if name in METHODS:
        return METHODS[name](parameters)
    if "." in name:
        return OverCorpus(parameters, rule_by_path(name), name)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InvalidRequestError(
        f"unknown method {name!r}{hint} (there are: {', '.join(NAMES)}, or module.Class of a Selector of yours)"
    )
