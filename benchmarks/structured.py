"""Compares llguidance and xgrammar over JSON schemas: what they accept, how fast, how large; prints a table.

    pip install xgrammar==0.2.8
    python benchmarks/structured.py

xgrammar is used for nothing else. Both work on the bundled model's tokenizer, without the model. A text that follows its
schema must pass, token by token; one that does not must be stopped. A schema that a library refuses to compile counts for
neither, and is named: refusing is honest.
"""

import json
import time
from collections.abc import Callable
from importlib.metadata import files, version
from statistics import median
from typing import Any

import jsonschema
import torch
from schema_cases import CASES

from reattention_core.frameworks.shared import shared_tokenizer
from reattention_core.models.loading import BUNDLED

TOKENIZER = shared_tokenizer(BUNDLED)
ROWS = len(TOKENIZER)

Start = Callable[[dict[str, Any]], Callable[[list[int]], tuple[bool, list[float]]]]
"""Compiles a schema and gives a function: whether tokens are accepted as a whole, and the seconds of every mask."""


def llguidance() -> Start:
    """The library over the tokenizer."""
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer
    from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask

    tokens = from_tokenizer(TOKENIZER, n_vocab=ROWS)
    mask = allocate_token_bitmask(1, ROWS)
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

    def start(schema: dict[str, Any]) -> Callable[[list[int]], tuple[bool, list[float]]]:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=form)
        first = LLMatcher(tokens, grammar, log_level=0)
        if first.is_error():
            raise ValueError(first.get_error().partition("\n")[0])

        def accepts(ids: list[int]) -> tuple[bool, list[float]]:
            matcher, seconds = first.deep_copy(), []
            for index in ids:
                began = time.perf_counter()
                fill_next_token_bitmask(matcher, mask, 0)
                seconds.append(time.perf_counter() - began)
                if not allowed(mask, index) or not matcher.consume_token(index):
                    return False, seconds
            return matcher.is_accepting(), seconds

        return accepts

    return start


def xgrammar() -> Start:
    """The library over the tokenizer."""
    import xgrammar as xgr

    compiler = xgr.GrammarCompiler(xgr.TokenizerInfo.from_huggingface(TOKENIZER, vocab_size=ROWS), cache_enabled=False)
    mask = xgr.allocate_token_bitmask(1, ROWS)

    def start(schema: dict[str, Any]) -> Callable[[list[int]], tuple[bool, list[float]]]:
        grammar = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )

        def accepts(ids: list[int]) -> tuple[bool, list[float]]:
            matcher, seconds = xgr.GrammarMatcher(grammar), []
            for index in [*ids, TOKENIZER.eos_token_id]:
                began = time.perf_counter()
                matcher.fill_next_token_bitmask(mask)
                seconds.append(time.perf_counter() - began)
                if not allowed(mask, index) or not matcher.accept_token(index):
                    return False, seconds
            return matcher.is_terminated(), seconds

        return accepts

    return start


def allowed(mask: torch.Tensor, index: int) -> bool:
    """Whether a token's bit is set in a mask of 32-bit words."""
    return bool(mask[0, index // 32] >> (index % 32) & 1)


def megabytes(*packages: str) -> float:
    """What the files of installed packages take on disk."""
    paths = [path for package in packages for path in files(package) or []]
    return sum(path.locate().stat().st_size for path in paths if path.locate().exists()) / 1e6  # type: ignore[attr-defined]


def measure(name: str, make: Callable[[], Start], packages: tuple[str, ...]) -> list[str]:
    """A row of the table; what was wrong or refused is printed."""
    start = make()
    valid = [0, 0]
    invalid = [0, 0]
    compiling, masks = [], []
    wrong, refused = [], []
    for case, schema, follow, others in CASES:
        check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        assert all(check.is_valid(value) for value in follow), case
        began = time.perf_counter()
        try:
            accepts = start(schema)
        except Exception as error:
            refused.append(f"{case} ({str(error).strip().partition(chr(10))[0][:90]})")
            continue
        compiling.append(time.perf_counter() - began)
        for counts, values, right in ((valid, follow, True), (invalid, others, False)):
            for value in values:
                text = json.dumps(value, ensure_ascii=False)
                whole, seconds = accepts(TOKENIZER.encode(text, add_special_tokens=False))
                masks += seconds
                counts[0] += whole is right
                counts[1] += 1
                if whole is not right:
                    wrong.append(f"{case}: {'refuses' if right else 'accepts'} {text}")
    masks.sort()
    print(f"\n{name}: not compiled: {'; '.join(refused) or 'none'}\n  wrong: {'; '.join(wrong) or 'none'}")
    return [
        f"{name} {version(packages[0])}",
        f"{len(CASES) - len(refused)} of {len(CASES)}",
        f"{valid[0]} of {valid[1]}",
        f"{invalid[0]} of {invalid[1]}",
        f"{median(compiling) * 1e3:.2f} ms, {max(compiling) * 1e3:.0f} ms",
        f"{median(masks) * 1e6:.0f} µs, {masks[len(masks) * 99 // 100] * 1e6:.0f} µs",
        f"{megabytes(*packages):.1f} MB ({', '.join(packages)})",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [measure("llguidance", llguidance, ("llguidance",))]
    rows += [measure("xgrammar", xgrammar, ("xgrammar", "apache-tvm-ffi"))]
    head = (
        "library",
        "compiled",
        "valid accepted",
        "invalid stopped",
        "compile (median, most)",
        "mask (median, 99 %)",
        "size",
    )
    print("\n| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
