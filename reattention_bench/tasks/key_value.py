"""Key-value retrieval as in Lost in the Middle (arXiv 2307.03172): a JSON object of random identifiers, one key is asked.

All draws of a length share one object, cut into documents by its lines, and ask for keys at their depths. Right is an
answer that contains the value.
"""

import random
import uuid
from itertools import count as numbers

from reattention_bench.case import Case, Group, Size
from reattention_bench.haystack import PER_DOCUMENT
from reattention_bench.metrics import contains
from reattention_bench.tasks.base import Task, counter
from reattention_core.documents import Document
from reattention_core.errors import InvalidRequestError
from reattention_core.tokens import PlainTokenizer


class KeyValue(Task):
    """See the top of this file."""

    name = "key_value"
    summary = "a JSON object of random identifiers; the value of one key"
    question_form = "\n{question}"
    max_new_tokens = 48

    def groups(self, size: Size, tokens: PlainTokenizer) -> list[Group]:
        """One group a length; draws differ in the key that is asked for."""
        made = []
        for length in size.lengths or (4000,):
            documents, pairs = _object(length, tokens)
            cases = []
            for split, seed, depth in size.spots(10):
                # Draws at one depth ask for neighbouring keys.
                number = min(int(depth * len(pairs)) + (seed // 2 if size.depths else seed % 2), len(pairs) - 1)
                name, value, owner = pairs[number]
                query = f'Key: "{name}"'
                case = Case(
                    task=self.name,
                    length=length,
                    seed=seed,
                    split=split,
                    depth=depth,
                    question=f'{query}\nCorresponding value: "',
                    query=query,
                    answers=(value,),
                    gold=frozenset([owner]),
                )
                cases.append(case)
            made.append(Group(documents, cases, pieces=True))
        return made

    def score(self, case: Case, answer: str) -> dict[str, float]:
        """1 if the value stands in the answer."""
        return {"score": contains(answer, case.answers)}


def _object(length: int, tokens: PlainTokenizer) -> tuple[list[Document], list[tuple[str, str, str]]]:
    """The object's documents, and every key with its value and its document's id."""
    rng, count = random.Random(length), counter(tokens)
    documents: list[Document] = []
    pairs: list[tuple[str, str, str]] = []
    lines, used, total = ["JSON data:\n{"], 8, 8

    def close() -> None:
        documents.append(Document(text="\n".join(lines), id=str(len(documents))))

    for _ in numbers():
        name, value = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2))
        line = f' "{name}": "{value}",'
        cost = count(line) + 1
        if total + cost > length:
            break
        if used + cost > PER_DOCUMENT:
            close()
            lines, used, total = [], 1, total + 1
        lines.append(line)
        pairs.append((name, value, str(len(documents))))
        used, total = used + cost, total + cost
    if not pairs:
        raise InvalidRequestError(
            f"an object of {length} tokens cannot hold one key and its value: pass a larger --length"
        )
    lines[-1] = lines[-1].rstrip(",") + "\n}"
    close()
    return documents, pairs
