"""How much reading a prompt's known beginning saves: first token, cold and warm, and what it costs to look a prompt up.

The same long text is asked different things. Cold, nothing is known; warm, the text was read for another question. What is
measured is the time to the first token, which is reading: the answer has one token.

    python benchmarks/prefix.py --tokens 8000 --tokens 30000
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import transformers
import typer

from benchmarks.texts import ESSAYS, long_text
from benchmarks.timing import RESULTS, device, measured_commit, write_rows
from reattention_core import Engine
from reattention_core.cache.kept import Kept
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.prefix import PrefixTree
from reattention_core.select.fixed import Everything

QUESTIONS = ["Who wrote this?", "What is a startup?", "Which language is best?"]


class Progress:
    """Says every ten seconds how many tokens the model has read."""

    def __init__(self, engine: Engine) -> None:
        self._tokens, self._began, self._said = 0, time.perf_counter(), 0.0
        engine.attachment.model.base_model.register_forward_hook(self._count)

    def _count(self, module: Any, given: Any, out: Any) -> None:
        self._tokens += out[0].shape[1]
        now = time.perf_counter() - self._began
        if now > self._said + 10:
            self._said = now
            print(f"  {self._tokens:,} tokens read, {now:.0f} s", flush=True)


def first_tokens(engine: Engine, body: str) -> dict[str, float]:
    """Seconds to the first token, cold and warm (the least of two), and how many tokens were not run."""
    answers = []
    engine.prefixes.release()
    for question in QUESTIONS:
        prompt = f"{body}\n\nQuestion: {question}\nAnswer:"
        answers.append(engine.generate(prompt, max_new_tokens=1, strategy="reattention"))
        usage = answers[-1].usage
        read = f"{usage.prompt_tokens:,} tokens read, {usage.cached_tokens:,} known"
        print(f"  {question} {read}, {usage.first_token_seconds:.1f} s to the first token", flush=True)
    cold, *warm = (answer.usage for answer in answers)
    best = min(warm, key=lambda usage: usage.first_token_seconds)
    return {
        "prompt_tokens": cold.prompt_tokens,
        "cached_tokens": best.cached_tokens,
        "cold_s": cold.first_token_seconds,
        "warm_s": best.first_token_seconds,
        "times_less_time": cold.first_token_seconds / best.first_token_seconds,
        "times_fewer_tokens": cold.prompt_tokens / best.prompt_tokens,
        "kept_bytes": engine.prefixes.kept.nbytes,
    }


def lookup(n: int = 100_000) -> dict[str, float]:
    """Milliseconds to look up a prompt of n tokens of which all is known, its keys and values left aside; median of nine."""
    cache = ContextCache(1, Everything(), n)
    nothing = torch.zeros(1, 1, n, 1)
    cache.layers[0].update(nothing, nothing)
    tree, ids = PrefixTree(Kept(1 << 30)), [i % 50021 for i in range(n)]
    tree.keep("everything", ids, 32, cache)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        found = tree.take("everything", ids, 32, ContextCache(1, Everything(), n))
        times.append(1000 * (time.perf_counter() - began))
    return {"prompt_tokens": n, "cached_tokens": found, "lookup_ms": sorted(times)[4]}


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Length of the text; may be repeated.")] = None,
    text: Annotated[Path, typer.Option(help="A long text; the usual one is Paul Graham's essays.")] = ESSAYS,
    model: Annotated[str, typer.Option(help="Any causal LM.")] = "smollm2-135m-instruct",
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Ask different things of one long prompt."""
    essays, version = long_text(text), commit or measured_commit()
    engine = Engine.from_pretrained(model, prefix_bytes=1 << 40)
    Progress(engine)
    per_token = len(essays) / len(engine.tokens.encode(essays).ids)
    stamp = {
        "model": Path(engine.name).name,
        "dtype": str(engine.attachment.model.dtype).removeprefix("torch."),
        "device": device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": version,
    }
    rows = [{"measured": "lookup", **lookup()}]
    print(rows[-1])
    for n in tokens or [8000, 30000]:
        rows.append({"measured": "first token", **first_tokens(engine, essays[: int(n * per_token)])})
        print(rows[-1])
    columns = dict.fromkeys(name for row in rows for name in row)
    write_rows(
        RESULTS / f"prefix_{'gpu' if torch.cuda.is_available() else 'cpu'}.csv",
        [*columns, *stamp],
        [{**row, **stamp} for row in rows],
    )


if __name__ == "__main__":
    typer.run(main)
