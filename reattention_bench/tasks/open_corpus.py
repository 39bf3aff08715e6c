"""Questions over a whole corpus: is the evidence found, and is the answer right?

A corpus is two files of the data folder: NAME.corpus.jsonl with {doc_id, title, text} and NAME.questions.jsonl with
{qid, question, answers, gold_doc_ids}. Evidence recall asks that all gold documents are among the first k; answers are
scored by containment, SQuAD's F1 and exact match. Questions that contain their answer (many comparisons do) count for
recall alone. Form and ends of an answer are the engine's own, without solved examples: behind three of them a small model
answers with theirs (docs/quality.md).
"""

import json
import random
from pathlib import Path
from typing import Any

from reattention_bench.case import Case, Group, Size, split_of
from reattention_bench.metrics import contains, exact_match, normalise, token_f1
from reattention_bench.tasks.base import Task
from reattention_core.config import Config
from reattention_core.documents import Document
from reattention_core.errors import InvalidRequestError
from reattention_core.tokens import PlainTokenizer


class OpenCorpus(Task):
    """See the top of this file."""

    stop = Config().stop

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group: the corpus with all its questions, or as many as `draws` says, drawn at random."""
        if size.lengths or size.depths:
            raise InvalidRequestError(f"{self.name} is a corpus of its own length: leave out --length and --depth")
        found = self._read(size.data, "corpus")
        documents = [
            Document(text=d["text"], title=d["title"] if size.titles else "", id=str(d["doc_id"])) for d in found
        ]
        length = sum(len(document.ids) for document in tokens.encode_documents(documents))
        cases = []
        for number, asked in enumerate(self._read(size.data, "questions")):
            answers = tuple(asked["answers"])
            known = normalise(asked["question"])
            case = Case(
                task=self.name,
                length=length,
                seed=number,
                split=split_of(asked["qid"]),
                name=asked["qid"],
                question=asked["question"],
                query=asked["question"],
                answers=answers,
                gold=frozenset(map(str, asked["gold_doc_ids"])),
                answered=not any(normalise(answer) in known for answer in answers),
            )
            cases.append(case)
        chosen = []
        for split in size.splits:
            half = [case for case in cases if case.split == split]
            if size.draws is not None:
                random.Random(0).shuffle(half)
            chosen += half[: size.draws]
        return [Group(documents, chosen)]

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """Containment as `score`, F1 and exact match; nothing where the question contains the answer."""
        if not case.answered:
            return {}
        return {
            "score": contains(answer, case.answers),
            "f1": token_f1(answer, case.answers),
            "em": exact_match(answer, case.answers),
        }

    def _read(self, data: Path, part: str) -> list[dict[str, Any]]:
        path = data / f"{self.name}.{part}.jsonl"
        if not path.is_file():
            raise InvalidRequestError(
                f"there is no file {str(path)!r}: pass the folder that holds the corpora with --data, or leave out {self.name}"
            )
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


class XQuAD(OpenCorpus):
    """240 Wikipedia paragraphs, one of which answers (XQuAD, arXiv 1910.11856)."""

    name = "xquad_en"
    summary = "paragraphs of Wikipedia, questions written to them; one holds the answer"


class NaturalQuestions(OpenCorpus):
    """2,600 Wikipedia passages under real search questions (Natural Questions, as in Lost in the Middle)."""

    name = "nq_oracle"
    summary = "passages of Wikipedia, real search questions; one holds the answer"


class HotpotQA(OpenCorpus):
    """1,962 Wikipedia passages; every question needs two (HotpotQA, arXiv 1809.09600)."""

    name = "hotpot200"
    summary = "passages of Wikipedia, questions that need two of them"
