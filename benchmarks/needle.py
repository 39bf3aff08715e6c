"""A number needle in essays: the strategies and full attention side by side, one row per case as CSV, then a table.

The needle and its question are those of RULER's niah_single (a special magic number). The haystack is cut into documents of
about 1,000 tokens; the question is put as raw completion. Full attention is the stock model, detached, on the same text.

    python benchmarks/needle.py --tokens 16000 --draws 10 --full-draws 3
"""

import csv
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import transformers
import typer
from tqdm import tqdm

from benchmarks.timing import RESULTS, device, measured_commit
from reattention_core import Document, Engine

ESSAYS = Path(__file__).parents[2] / "shared" / "data" / "essays.txt"
NEEDLE = "One of the special magic numbers for long-context is: {number}. "
FORM = "\nQuestion: {question}"
QUESTION = (
    "What is the special magic number for long-context mentioned in the text?\n"
    "Answer: The special magic number for long-context mentioned in the text is:"
)
DOCUMENT = 4000
"""Characters of a document, about 1,000 tokens."""


def haystack(text: str, characters: int, draw: int, draws: int) -> tuple[str, str]:
    """Essays from a random place with the needle after a sentence, at this draw's depth; and the number to find."""
    rng = random.Random(draw)
    number = str(rng.randint(10000, 99999))
    body = text * (2 + characters // len(text))
    start = rng.randrange(len(text))
    body = body[start : start + characters]
    at = body.find(". ", int(len(body) * (draw + 0.5) / draws)) + 2
    return body[:at] + NEEDLE.format(number=number) + body[at:], number


@torch.inference_mode()
def full_attention(engine: Engine, text: str) -> tuple[str, int]:
    """What the stock model answers with everything in its context; and how many tokens that was."""
    ids = engine.tokens.encode(text + "\n\n" + FORM.format(question=QUESTION)).ids
    prompt = torch.tensor([ids], device=engine.attachment.model.device)
    out = engine.attachment.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False, pad_token_id=0
    )
    return engine.tokenizer.decode(out[0, len(ids) :]), len(ids)


def main(
    tokens: Annotated[int, typer.Option(help="Length of the haystack.")] = 16000,
    draws: Annotated[int, typer.Option(help="Needles, at depths spread evenly.")] = 10,
    full_draws: Annotated[int, typer.Option(help="Of these, how many full attention answers too.")] = 3,
    text: Annotated[Path, typer.Option(help="A long text; the usual one is Paul Graham's essays.")] = ESSAYS,
    model: Annotated[str, typer.Option(help="Any causal LM.")] = "smollm2-135m-instruct",
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Ask for a number in a long text, by every strategy."""
    if not text.exists():
        raise typer.BadParameter(f"{text} does not exist: name a long text with --text")
    if tokens < 1000:
        raise typer.BadParameter("a haystack has at least 1,000 tokens")
    essays, version = text.read_text(), commit or measured_commit()
    engine = Engine.from_pretrained(model, question_form=FORM, stop=("\n",))
    per_token = len(essays) / len(engine.tokens.encode(essays).ids)
    strategies = ["consensus", "reattention"]
    full = [d for d in range(draws) if d % max(draws // max(full_draws, 1), 1) == 0][:full_draws]
    rows = []
    with tqdm(total=draws * len(strategies) + len(full), unit="answer") as bar:
        for draw in range(draws):
            body, number = haystack(essays, int(tokens * per_token), draw, draws)
            parts = [Document(text=body[i : i + DOCUMENT], id=str(i)) for i in range(0, len(body), DOCUMENT)]
            corpus = engine.ingest(parts, progress=False)
            for strategy in strategies:
                began = time.perf_counter()
                answer = corpus.ask(QUESTION, strategy=strategy, max_new_tokens=10)
                rows.append((strategy, corpus.n_tokens, draw, number, answer.text, time.perf_counter() - began))
                bar.update()
        name = Path(engine.name).name
        engine.attachment.detach()
        for draw in full:
            body, number = haystack(essays, int(tokens * per_token), draw, draws)
            began = time.perf_counter()
            found, length = full_attention(engine, body)
            rows.append(("full attention", length, draw, number, found, time.perf_counter() - began))
            bar.update()
    write(rows, name, version, f"needle_{tokens}_{'gpu' if torch.cuda.is_available() else 'cpu'}.csv")


def write(rows: list[tuple[str, int, int, str, str, float]], model: str, version: str, file: str) -> None:
    """Write the rows as CSV, and print right answers and seconds by method."""
    stamp = (model, device(), torch.__version__, transformers.__version__, version)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / file).open("w", newline="") as out:
        writer = csv.writer(out)
        case = ("method", "tokens", "draw", "number", "answer", "right", "seconds")
        writer.writerow([*case, "model", "device", "torch", "transformers", "commit"])
        table = defaultdict(list)
        for method, tokens, draw, number, answer, seconds in rows:
            right = number in answer
            writer.writerow([method, tokens, draw, number, answer.strip(), int(right), f"{seconds:.2f}", *stamp])
            table[method].append((right, seconds))
    print(f"{'method':16} {'right':>8}  seconds per answer")
    for method, cases in table.items():
        right = f"{sum(r for r, _ in cases)}/{len(cases)}"
        print(f"{method:16} {right:>8}  {sum(s for _, s in cases) / len(cases):.1f}")


if __name__ == "__main__":
    typer.run(main)
