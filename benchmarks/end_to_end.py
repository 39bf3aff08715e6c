"""Times what a user waits for: reading documents, the first token, each further one; knows the library only from outside.

For every corpus size: reading speed, saving and opening, time to the first token over the opened corpus, time a token,
with and without CUDA graphs, and memory, beside the stock model with full attention; then the exponent with which each
grows. benchmarks/README.md explains the columns.

    python benchmarks/end_to_end.py                              # both models, on a GPU
    python benchmarks/end_to_end.py --models bundled --sizes 16000,1000000
    python benchmarks/end_to_end.py --quick                      # toy sizes and models on a CPU: checks the program
"""

import gc
import shutil
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.figures import EAGER, GRAPHS, STOCK, Table, plot
from benchmarks.stock import full_attention
from benchmarks.texts import ESSAYS, long_text
from benchmarks.timing import CUDA, DEVICE, RESULTS, Row, result_file, stamp
from reattention_core import Config, Corpus, Document, Engine
from reattention_core.config import checked
from reattention_core.errors import ReAttentionError
from reattention_core.memory import free_bytes
from reattention_core.models.loading import BUNDLED, load, load_tokenizer
from reattention_core.store.about import About

DOCUMENT = 4000
"""Characters of a document, about 1,000 tokens."""

QUESTIONS = (
    "What did the author work on before college?",
    "Why do most startups fail in their first year?",
    "Which language did the author write the store in?",
    "What makes a good essay, according to the text?",
    "Who should not start a company, and for what reason?",
    "How does one find good ideas to work on?",
)
"""The first warms up; each of the others is asked once."""
NAME = "benchmark"
OFTEN = 100_000
"""Tokens of a corpus up to which reading is timed three times: it takes too little for one time to say much."""
NEW_TOKENS = 48
"""Tokens of an answer whose decoding is timed."""


class Run:
    """All figures of one model.

    Args:
        model: not attached.
        tokenizer: its tokenizer.
        settings: fields of the library's `Config`.
        table: where rows go.
        text: a long text.
        folder: where corpora are saved.
        save_bytes: larger corpora are not saved: they are asked as they were read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict[str, Any],
        table: Table,
        text: str,
        folder: Path,
        save_bytes: float,
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._table, self._text, self._folder, self._save_bytes = table, text, folder, save_bytes
        # Every answer shall have the same length.
        model.generation_config.eos_token_id = None
        table.add(STOCK, "all", "weights", sum(p.nbytes for p in model.parameters()) / 1e9, "GB")
        self._per_token = len(text) / len(tokenizer(text).input_ids)

    def size(self, size: int, stock: bool) -> None:
        """All figures at one size; what fails is a row, and the rest is measured all the same."""
        corpus, texts = None, None
        try:
            settings = checked(Config, {**self._settings, "cuda_graphs": False})
            with Engine(self._model, self._tokenizer, settings, self._folder) as engine:
                corpus = self._read(engine, size)
                texts = self._ask(corpus, EAGER, size)
        except Exception as error:
            self._table.failed(EAGER, size, "ingest, save, open" if corpus is None else "ask", error)
        try:
            if corpus is not None:
                self._graphs(corpus, texts, size)
        except Exception as error:
            self._table.failed(GRAPHS, size, "ask", error)
        del corpus
        clean()
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            if stock:
                self._stock(size)
            else:
                self._table.add(STOCK, size, "first token", None, note="not run: beyond --stock-tokens")
        except Exception as error:
            self._table.failed(STOCK, size, "first token", error)
        clean()

    def _documents(self, size: int) -> list[Document]:
        """Documents of about 1,000 tokens that have about `size` tokens together; the text is repeated as need be."""
        characters = int(size * self._per_token)
        body = self._text * (1 + characters // len(self._text))
        parts = ((at, body[at : min(at + DOCUMENT, characters)]) for at in range(0, characters, DOCUMENT))
        return [Document(text=part, id=str(at)) for at, part in parts]

    def _read(self, engine: Engine, size: int) -> Corpus:
        """Ingest, save and open."""
        per_token = engine.attachment.per_token * self._model.dtype.itemsize
        if per_token * size > free_bytes(self._model.device):
            raise MemoryError(f"{per_token:,} bytes a token do not fit {free_bytes(self._model.device):,} free bytes")
        documents, add = self._documents(size), self._table.add
        began = time.perf_counter()
        tokens = sum(len(document.ids) for document in engine.tokens.encode_documents(documents[:256]))
        add(EAGER, size, "tokenising alone", tokens / (time.perf_counter() - began), "tokens/s", "of the same text")
        engine.ingest(documents[:8], progress=False)  # warms up
        reset_peak()
        corpus, times = None, []
        for _ in range(3 if CUDA and size <= OFTEN else 1):
            del corpus
            began = time.perf_counter()
            corpus = engine.ingest(documents, progress=False)
            times.append(since(began))
        seconds, note = statistics.median(times), f"the very first {times[0]:.3g} s" if len(times) > 1 else ""
        add(EAGER, size, "tokens read", corpus.n_tokens)
        add(EAGER, size, "ingest", corpus.n_tokens / seconds, "tokens/s", note)
        add(EAGER, size, "ingest time", seconds, "s", note)
        add(EAGER, size, "pages", corpus.nbytes / 1e9, "GB")
        self._peak(EAGER, size, "peak of ingest")
        if corpus.nbytes > self._save_bytes:
            add(EAGER, size, "save", None, note="not run: beyond --save-gb; asked as it was read")
            return corpus
        try:
            began = time.perf_counter()
            with engine.store.draft(NAME, About(engine.name, corpus.mode, engine.identity), replace=True) as draft:
                draft.publish(corpus.pages, corpus.documents)
            add(EAGER, size, "save", since(began), "s")
        except ReAttentionError as error:
            self._table.failed(EAGER, size, "save", error)
            return corpus
        del corpus
        clean()
        began = time.perf_counter()
        corpus = engine.open(NAME)
        add(EAGER, size, "open", since(began), "s")
        return corpus

    def _ask(self, corpus: Corpus, system: str, size: int) -> list[str]:
        """First token and decode; returns the texts of some answers."""
        add = self._table.add
        reset_peak()
        firsts, each, gaps, texts = [], [], [], []
        for question in QUESTIONS:
            began = time.perf_counter()
            corpus.ask(question, max_new_tokens=1, stop=())
            firsts.append(since(began))
        first = statistics.median(firsts[1:])
        add(system, size, "first token", first * 1e3, "ms", f"the very first {firsts[0] * 1e3:.0f} ms")
        for question in QUESTIONS:
            began = time.perf_counter()
            stream = corpus.stream(question, max_new_tokens=NEW_TOKENS, stop=())
            ticks = [time.perf_counter() for _ in stream]
            each.append(since(ticks[0]) / (stream.answer.usage.completion_tokens - 1))
            gaps += [after - before for before, after in pairwise(ticks)]
            texts.append(stream.answer.text)
        between = f"{statistics.median(gaps) * 1e3:.2f} ms between pieces" if gaps else ""
        add(system, size, "decode", statistics.median(each[1:]) * 1e3, "ms/token", between)
        add(system, size, "window", float(stream.answer.usage.window_tokens), "tokens")
        self._peak(system, size, "peak of asking")
        return texts

    def _graphs(self, corpus: Corpus, texts: list[str] | None, size: int) -> None:
        """The same questions with CUDA graphs, over the same pages."""
        settings = {**self._settings, "cuda_graphs": True}
        with Engine(self._model, self._tokenizer, checked(Config, settings), self._folder) as engine:
            same = Corpus(engine, corpus.name, corpus.pages, corpus.documents, corpus.mode)
            found = self._ask(same, GRAPHS, size)
        if texts is not None:
            alike = sum(one == other for one, other in zip(found, texts, strict=True))
            self._table.add(GRAPHS, size, "same text as without graphs", float(alike), f"answers of {len(texts)}")

    def _stock(self, size: int) -> None:
        """Full attention over a text of this size."""
        text = "".join(document.text for document in self._documents(size))
        ids = self._tokenizer(text).input_ids[:size]
        reset_peak()
        first, each = full_attention(self._model, ids, 16)
        add = self._table.add
        add(STOCK, size, "prefill", len(ids) / first, "tokens/s")
        add(STOCK, size, "first token", first * 1e3, "ms", "with the prefill")
        add(STOCK, size, "decode", each * 1e3, "ms/token")
        self._peak(STOCK, size, "peak of asking")

    def _peak(self, system: str, size: int, metric: str) -> None:
        """Device memory at most since `reset_peak`, weights included."""
        if CUDA:
            self._table.add(system, size, metric, torch.cuda.max_memory_allocated() / 1e9, "GB")


def since(began: float) -> float:
    """Seconds since then, with the device done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def clean() -> None:
    """Give freed memory back, so that the next size starts like the first."""
    gc.collect()
    torch.cuda.empty_cache()


def reset_peak() -> None:
    """Count the peak of device memory from here."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


def random_llama(quick: bool, dtype: torch.dtype) -> PreTrainedModel:
    """A model of Llama-3.1-8B's shape with random weights; its vocabulary is the bundled tokenizer's 49,152, not 128,256."""
    shape: dict[str, Any] = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    if quick:
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = LlamaConfig(
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 4,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    with torch.no_grad():
        # A trained model's proportions, roughly: the rounding errors of 32 layers drawn alike come near what attaching allows.
        model.model.embed_tokens.weight.mul_(50)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.div_(8)
            layer.mlp.down_proj.weight.div_(8)
    return model.eval()  # type: ignore[no-any-return]


def main(
    sizes: Annotated[str, typer.Option(help="Corpus sizes in tokens.")] = "16000,64000,250000,1000000,2000000",
    models: Annotated[
        str, typer.Option(help="bundled (SmolLM2-135M), 8b (Llama-3.1-8B's shape) or both.")
    ] = "bundled,8b",
    bundled: Annotated[str, typer.Option(help="Name or file of the bundled model.")] = BUNDLED,
    text: Annotated[Path, typer.Option(help="A long text; the usual one is Paul Graham's essays.")] = ESSAYS,
    stock_tokens: Annotated[int, typer.Option(help="Full attention is run up to this size.")] = 250_000,
    ingest_tokens: Annotated[int, typer.Option(help="Tokens in one forward pass of ingest; 0 is the library's.")] = 0,
    save_gb: Annotated[float, typer.Option(help="Larger corpora are not saved and opened, which takes minutes.")] = 25,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder where corpora are saved for the time of the run.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
    exact: Annotated[bool, typer.Option("--exact", help="Weights in float32, so that little is rounded.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Toy sizes, for a CPU.")] = False,
) -> None:
    """Time reading, the first token and every further one, at growing corpus sizes."""
    if unknown := set(models.split(",")) - {"bundled", "8b"}:
        raise typer.BadParameter(f"unknown model {', '.join(sorted(unknown))}: there are bundled and 8b")
    wanted = [400, 1200] if quick else sorted(int(size) for size in sizes.split(","))
    body, about = long_text(text)[: 20_000 if quick else None], stamp(commit)
    settings: dict[str, Any] = {"ingest_tokens": ingest_tokens} if ingest_tokens else {}
    settings |= {"cache_dtype": "float32"} if exact else {}
    rows: list[Row] = []
    file = result_file(out, "end_to_end", ".csv")
    tokenizer: PreTrainedTokenizerBase | None = None
    for name in models.split(","):
        if name == "8b":
            dtype = torch.bfloat16 if CUDA and not exact else torch.float32
            model, tokenizer = random_llama(quick, dtype), tokenizer or load_tokenizer(bundled)
        else:
            model, tokenizer = load(bundled, DEVICE, "float32" if exact else "auto")
        label = "toy" if quick and name == "8b" else name
        table = Table(file, rows, label, {**about, "dtype": str(model.dtype).removeprefix("torch.")})
        with tempfile.TemporaryDirectory(dir=store) as folder:
            run = Run(model, tokenizer, settings, table, body, Path(folder) / "corpora", save_gb * 1e9)
            for size in wanted:
                run.size(size, stock=size <= stock_tokens)
            table.growth()
        del run, model
        clean()
    missed = sum(row.get("met") is False for row in rows)
    failed = sum(str(row["note"]).startswith("failed") for row in rows)
    print(f"{len(rows)} rows in {file}; {missed} beside their target, {failed} failed")
    try:
        plot(rows, file.with_suffix(".png"))
    except ImportError as error:
        print(f"no plot: {error}")


if __name__ == "__main__":
    typer.run(main)
