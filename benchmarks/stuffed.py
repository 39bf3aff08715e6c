"""A number needle in a prompt that a framework stuffed: stock chains beside the corpus route, one row per answer as CSV.

The needle is that of RULER's niah_single; the haystack is cut into documents of about 1,000 tokens. Then it is asked thrice: as a
corpus of these documents, by LlamaIndex's SummaryIndex (`compact`) and by LangChain's create_stuff_documents_chain, both with
our model in them and nothing else of ours. A second question shows what the next one over the same text takes.

    python benchmarks/stuffed.py --tokens 60000 --draws 10
"""

import csv
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import transformers
import typer
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document as Page
from langchain_core.prompts import ChatPromptTemplate
from llama_index.core import Settings, SummaryIndex
from llama_index.core.schema import TextNode

from benchmarks.texts import ESSAYS, long_text
from benchmarks.timing import RESULTS, device, measured_commit
from langchain_reattention import ChatReAttention
from llama_index.llms.reattention import ReAttentionLLM
from reattention_core import Document, Engine

NEEDLE = "One of the special magic numbers for long-context is: {number}. "
QUESTION = "What is the special magic number for long-context mentioned in the text?"
NEXT = "Who wrote the first of these essays?"
DOCUMENT = 4000
"""Characters of a document, about 1,000 tokens."""

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question from the context.\n\n<context>\n{context}\n</context>"),
        ("user", "{question}"),
    ]
)


def haystack(text: str, characters: int, draw: int, draws: int) -> tuple[str, str]:
    """Essays from a random place with the needle after a sentence, at this draw's depth; and the number to find."""
    rng = random.Random(draw)
    number = str(rng.randint(10000, 99999))
    body = text * (2 + characters // len(text))
    start = rng.randrange(len(text))
    body = body[start : start + characters]
    at = body.find(". ", int(len(body) * (draw + 0.5) / draws)) + 2
    return body[:at] + NEEDLE.format(number=number) + body[at:], number


def methods(engine: Engine, parts: list[str], tokens: int) -> dict[str, Callable[[str], str]]:
    """The ways of asking over the same documents, with room for an answer of so many tokens."""
    corpus = engine.ingest([Document(text=part, id=str(n)) for n, part in enumerate(parts)], progress=False)
    llm = ReAttentionLLM(engine=engine, max_tokens=tokens)
    Settings.tokenizer = llm.tokenizer  # the framework's own would be fetched from the network
    index = SummaryIndex([TextNode(text=part) for part in parts])
    summary = index.as_query_engine(llm=llm, response_mode="compact")
    chain = create_stuff_documents_chain(ChatReAttention(engine=engine, max_tokens=tokens), PROMPT)
    pages = [Page(page_content=part) for part in parts]
    return {
        "corpus": lambda question: corpus.ask(question, max_new_tokens=tokens).text,
        "llama_index": lambda question: str(summary.query(question)),
        "langchain": lambda question: str(chain.invoke({"context": pages, "question": question})),
    }


def asked(engine: Engine, ask: Callable[[str], str], question: str) -> dict[str, Any]:
    """The answer, and what the engine counted for it."""
    before = engine.stats()
    text = ask(question)
    after = engine.stats()
    return {
        "answer": text.strip(),
        "calls": after.requests["answered"] - before.requests["answered"],
        "prompt_tokens": after.tokens_read - before.tokens_read,
        "cached_tokens": after.tokens_cached - before.tokens_cached,
        "first_token_seconds": after.first_token_seconds - before.first_token_seconds,
        "seconds": after.answer_seconds - before.answer_seconds,
    }


def main(
    tokens: Annotated[int, typer.Option(help="Length of the haystack.")] = 60000,
    draws: Annotated[int, typer.Option(help="Needles, at depths spread evenly.")] = 10,
    answer: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 48,
    text: Annotated[Path, typer.Option(help="A long text; the usual one is Paul Graham's essays.")] = ESSAYS,
    model: Annotated[str, typer.Option(help="Any causal LM.")] = "smollm2-135m-instruct",
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Ask for a number in a long text, by stock chains and as a corpus."""
    essays, version = long_text(text), commit or measured_commit()
    engine = Engine.from_pretrained(model)
    per_token = len(essays) / len(engine.tokens.encode(essays).ids)
    stamp = {
        "model": Path(engine.name).name,
        "device": device(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": version,
    }
    case = ["method", "tokens", "draw", "question", "number", "right"]
    counted = ["answer", "calls", "prompt_tokens", "cached_tokens", "first_token_seconds", "seconds"]
    RESULTS.mkdir(exist_ok=True)
    right = defaultdict[str, int](int)
    path = RESULTS / f"stuffed_{tokens}_{'gpu' if torch.cuda.is_available() else 'cpu'}.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*case, *counted, *stamp])
        writer.writeheader()
        for draw in range(draws):
            body, number = haystack(essays, int(tokens * per_token), draw, draws)
            parts = [body[i : i + DOCUMENT] for i in range(0, len(body), DOCUMENT)]
            engine.prefixes.release()
            for method, ask in methods(engine, parts, answer).items():
                for which, question in enumerate((QUESTION, NEXT), 1):
                    row: dict[str, Any] = {"method": method, "tokens": tokens, "draw": draw, "question": which}
                    row |= asked(engine, ask, question)
                    if which == 1:
                        row |= {"number": number, "right": int(number in row["answer"])}
                        right[method] += row["right"]
                    print(row, flush=True)
                    writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (row | stamp).items()})
                    out.flush()
    for method, count in right.items():
        print(f"{method:12} {count}/{draws}")


if __name__ == "__main__":
    typer.run(main)
