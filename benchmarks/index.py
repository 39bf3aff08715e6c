"""How small may the index be that finds pages? Recall of the right document by evidence alone, with ever fewer heads and bits.

Corpora and questions are those of a data folder: NAME.corpus.jsonl ({doc_id, title, text}) and NAME.questions.jsonl ({question,
gold_doc_ids}). Every question is put once; its evidence is worked out by the library's own rule from keys that were rounded in
some way and made whole again, except `int8`, which is the index as it is used. A document's evidence is the sum of its pages';
recall at k is the share of right documents among the first k.

    python benchmarks/index.py --data FOLDER --corpus xquad_en --corpus nq_oracle --corpus hotpot200
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # run as a file: this folder's kernels.py would hide Hugging Face's package of that name
    sys.path[0] = str(Path(__file__).parents[1])

import torch
import typer

from benchmarks.texts import ESSAYS
from benchmarks.timing import RESULTS, Row, result_file, shown, stamp, write_rows
from reattention_core import Corpus, Engine
from reattention_core.cache.pages import PAGE, Pages, pages_for
from reattention_core.documents import Document
from reattention_core.models.loading import BUNDLED
from reattention_core.prompts import build_prompt
from reattention_core.select.base import Head, Probed, Question
from reattention_core.select.recall import recall
from reattention_kernels import KeyIndex, indexed

AT, HEADS = (1, 3, 5, 10), (16, 12, 8, 4)

Rounded = Callable[[torch.Tensor], torch.Tensor | KeyIndex]
"""Keys [1, P, T, D] as the index would have them."""


def bits(n: int, over: tuple[int, ...]) -> Rounded:
    """Whole numbers of n bits, with one scale for everything along some dimensions of a page."""
    largest = 2 ** (n - 1) - 1

    def rounded(key: torch.Tensor) -> torch.Tensor:
        step = (key.float().abs().amax(over, keepdim=True) / largest).clamp(min=1e-9)
        return ((key.float() / step).round().clamp(-largest, largest) * step).to(key.dtype)

    return rounded


def rank(n: int, then: Rounded) -> Rounded:
    """The n directions in which a head's keys are largest, rounded there."""

    def rounded(key: torch.Tensor) -> torch.Tensor:
        whole = key.float()
        flat = whole.flatten(0, 2)
        directions = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -n:]
        lower = then(whole @ directions)
        assert isinstance(lower, torch.Tensor)
        return (lower @ directions.T).to(key.dtype)

    return rounded


PAGEWISE, CHANNELWISE = (2, 3), (2,)

WAYS: dict[str, tuple[Rounded, Callable[[int], float]]] = {
    "as cached": (lambda key: key, lambda d: 2.0 * d),
    "int8": (indexed, lambda d: d + 4 / PAGE),
    "4 bits, a scale a page": (bits(4, PAGEWISE), lambda d: d / 2 + 4 / PAGE),
    "4 bits, a scale a page and number": (bits(4, CHANNELWISE), lambda d: d / 2 + 2 * d / PAGE),
    "3 bits, a scale a page and number": (bits(3, CHANNELWISE), lambda d: 3 * d / 8 + 2 * d / PAGE),
    "2 bits, a scale a page and number": (bits(2, CHANNELWISE), lambda d: d / 4 + 2 * d / PAGE),
    "rank D/2, 8 bits": (rank(32, bits(8, PAGEWISE)), lambda d: d / 2 + 4 / PAGE),
    "rank D/4, 8 bits": (rank(16, bits(8, PAGEWISE)), lambda d: d / 4 + 4 / PAGE),
    "rank D/8, 8 bits": (rank(8, bits(8, PAGEWISE)), lambda d: d / 8 + 4 / PAGE),
    "rank D/2, 4 bits a number's scale": (rank(32, bits(4, CHANNELWISE)), lambda d: d / 4 + d / PAGE),
}
"""How keys are rounded, and the bytes that a token then takes of a key-value head of D numbers (64 with the bundled model)."""


class Rounding(Pages):
    """Pages whose keys are scored as an index would have them."""

    def __init__(self, pages: Pages, way: Rounded) -> None:
        super().__init__(pages.keys, pages.values, pages.filled, pages.first)
        self._way, self._kept = way, dict[tuple[int, int], torch.Tensor | KeyIndex]()

    def scan_head(self, layer: int, group: int) -> torch.Tensor | KeyIndex:
        """See `Pages.scan_head`."""
        if (layer, group) not in self._kept:
            self._kept[layer, group] = self._way(self.keys[layer][group : group + 1])
        return self._kept[layer, group]


def read(engine: Engine, data: Path, name: str, most: int) -> tuple[Corpus, list[tuple[str, list[int]]]]:
    """A corpus, and questions with the numbers of their right documents."""
    given, asked = (
        [json.loads(line) for line in (data / f"{name}.{what}.jsonl").read_text().splitlines()]
        for what in ("corpus", "questions")
    )
    texts = [Document(title=d["title"], text=d["text"], id=str(d["doc_id"])) for d in given]
    places = {d["doc_id"]: number for number, d in enumerate(given)}
    step = max(len(asked) // most, 1)
    questions = [(q["question"], [places[i] for i in q["gold_doc_ids"]]) for q in asked[::step][:most]]
    return engine.ingest(texts, progress=False), questions


class Asked:
    """A corpus and its questions, with what the model makes of each question behind the sink.

    Args:
        engine: that read the corpus.
        corpus: on the device.
        questions: texts, and the numbers of their right documents.
    """

    def __init__(self, engine: Engine, corpus: Corpus, questions: Sequence[tuple[str, list[int]]]) -> None:
        self._engine, self._corpus, self._questions = engine, corpus, questions
        self._prompts = [build_prompt(engine.tokens, engine.config, question) for question, _ in questions]
        self._probed: dict[tuple[int, ...], Probed] = {}
        self._owner = torch.zeros(corpus.pages.n_pages, dtype=torch.int64)
        for number, document in enumerate(corpus.documents):
            first = document.start // PAGE
            self._owner[first : first + pages_for(document.n_tokens)] = number
        probe = corpus.edition.probe(lambda: False)
        with engine.busy():
            for prompt in self._prompts:
                for ids, part in ((prompt.ids, prompt.asking), (prompt.empty, slice(0, len(prompt.empty)))):
                    if tuple(ids) not in self._probed:
                        self._probed[tuple(ids)] = probe(ids, part)

    def recalls(self, heads: Sequence[Head], way: Rounded) -> list[float]:
        """Recall at each of `AT`, by these heads and keys rounded so."""
        pages, memo, found = Rounding(self._corpus.pages, way), dict[str, object](), torch.zeros(len(AT))
        for prompt, (_, right) in zip(self._prompts, self._questions, strict=True):
            question = Question(
                prompt.ids,
                prompt.asking,
                prompt.wording,
                prompt.empty,
                self._known,
                lambda _: torch.empty(0),
                lambda: self._engine.trusted,
                memo,
            )
            queries = self._known(prompt.ids, prompt.asking).queries
            evidence = recall(pages, question, queries, self._engine.attachment.scaling, heads).cpu()
            score = torch.zeros(len(self._corpus.documents)).index_add_(0, self._owner, evidence)
            first = score.argsort(descending=True).tolist()
            found += torch.tensor([len(set(first[:k]) & set(right)) / len(right) for k in AT])
        return (found / len(self._questions)).tolist()

    def _known(self, ids: Sequence[int], _: slice) -> Probed:
        return self._probed[tuple(ids)]


def main(
    data: Annotated[Path, typer.Option(help="Folder of corpora and questions.")] = ESSAYS.parent,
    corpus: Annotated[list[str] | None, typer.Option(help="Names; may be repeated.")] = None,
    questions: Annotated[int, typer.Option(help="Of each corpus at most.")] = 200,
    model: Annotated[str, typer.Option(help="Name or file of the model.")] = BUNDLED,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    commit: Annotated[str, typer.Option(help="The commit that is measured, where git cannot tell.")] = "",
) -> None:
    """Rank documents by evidence from smaller and smaller indexes."""
    about, rows, file = stamp(commit), list[Row](), result_file(out, "index", ".csv")
    with Engine.from_pretrained(model, prefix_bytes=0) as engine:
        with engine.busy():
            trusted = engine.trusted.heads
        shapes = engine.attachment.shapes
        each = [own[0] // shape[0] for own, shape in zip(engine.attachment.query_shapes, shapes, strict=True)]
        for name in corpus or ["xquad_en", "nq_oracle", "hotpot200"]:
            made, given = read(engine, data, name, questions)
            asked = Asked(engine, made, given)
            for count in HEADS:
                groups = {(head.layer, head.head // each[head.layer]) for head in trusted[:count]}
                for way, (rounded, size) in WAYS.items():
                    row: Row = {"corpus": name, "tokens": made.n_tokens, "heads": count, "kv_heads": len(groups)}
                    row |= {"keys": way, "bytes_per_token": sum(size(shapes[layer][1]) for layer, _ in groups)}
                    found = asked.recalls(trusted[:count], rounded)
                    row |= {f"recall@{k}": one for k, one in zip(AT, found, strict=True)}
                    print("  ".join(shown(value) for value in row.values()), flush=True)
                    rows.append(row | {"questions": len(given)} | about)
                    write_rows(file, list(rows[0]), rows)
            del made, asked


if __name__ == "__main__":
    typer.run(main)
