"""What the lab's tests share: token counts, a model's folder and a small data folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core.tokens import PlainTokenizer

PASSAGES = [
    ("Rivers", "The Arno flows through Florence. It is 241 kilometres long."),
    ("Mills", "The mill at Varn was built in 1742. It grinds rye."),
    ("Harbours", "The harbour master of Ostby is Ingrid. She keeps two dogs."),
    ("Clocks", "The clock in Hove strikes thirteen. Nobody repairs it."),
    ("Bridges", "The bridge over the Tamsel has seven arches. It is made of stone."),
    ("Ferries", "The ferry to Lund leaves at nine. It carries sheep."),
]
QUESTIONS = [
    ("How long is the Arno?", ["241 kilometres"], [0]),
    ("When was the mill at Varn built?", ["1742"], [1]),
    ("Who is the harbour master of Ostby?", ["Ingrid", "Miss Ingrid"], [2]),
    ("Which is made of stone, the bridge or the mill?", ["the bridge"], [4, 1]),
    ("When does the ferry to Lund leave?", ["at nine", "nine"], [5]),
    ("What does the clock in Hove strike?", ["thirteen"], [3]),
]


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerFast) -> PlainTokenizer:
    return PlainTokenizer(tokenizer, 512)


@pytest.fixture
def count(tokens: PlainTokenizer) -> Callable[[str], int]:
    return lambda text: len(tokens.encode(text).ids)


@pytest.fixture
def folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny model on disk."""
    made = tmp_path / "tiny"
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A corpus with questions, a haystack and a book."""
    made = tmp_path / "data"
    made.mkdir()
    with (made / "xquad_en.corpus.jsonl").open("w") as out:
        for number, (title, text) in enumerate(PASSAGES):
            out.write(json.dumps({"doc_id": number, "title": title, "text": text}) + "\n")
    with (made / "xquad_en.questions.jsonl").open("w") as out:
        for number, (question, answers, gold) in enumerate(QUESTIONS):
            row = {"qid": f"q{number}", "question": question, "answers": answers, "gold_doc_ids": gold, "source": ""}
            out.write(json.dumps(row) + "\n")
    story = " ".join(f"On day {day} the ship went {day * 3} miles, and it rained in the evening." for day in range(200))
    (made / "essays.txt").write_text(story)
    (made / "state_union.txt").write_text(story)
    return made
