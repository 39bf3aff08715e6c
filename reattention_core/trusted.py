"""Examines what of a model finds what a question asks for, and keeps the result; knows no corpus of the user's.

The model reads the exam's texts as a small corpus. A head's trust is the share of its gain (its attention beyond that of an
empty question) that goes to the text that answers, averaged over the exam's questions. The trusted layer is the one whose
values make that text the likeliest, were closeness its log-likelihood. No labels of the user's, no training: a few seconds, once
for each model, then a file.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter, ValidationError

from reattention_core.cache.layout import lay_out
from reattention_core.edition import Edition
from reattention_core.home import home
from reattention_core.ingest import Ingest
from reattention_core.prompts import build_prompt
from reattention_core.select import Consensus
from reattention_core.select.base import Head, Trusted
from reattention_core.select.closeness import closeness, rarity
from reattention_core.select.exam import EXAM
from reattention_core.select.passages import Passages
from reattention_core.select.recall import gains

if TYPE_CHECKING:
    from reattention_core.engine import Engine

MOST = 32
"""Heads that are kept."""

BATCH = 2048
"""Tokens of the exam's texts that are read at a time."""

logger = logging.getLogger(__name__)

_FILE = TypeAdapter(Trusted)


def trusted(engine: "Engine") -> Trusted:
    """What is trusted of an engine's model: from the file, or examined now; the caller has the model."""
    about = json.dumps([engine.identity, engine.config.question_form, EXAM], sort_keys=True)
    file = home() / "exams" / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"
    found = _kept(file, engine.attachment.query_shapes)
    if found is None:
        found = examine(engine)
        _keep(file, found)
    return found


def examine(engine: "Engine") -> Trusted:
    """Read the exam's texts and put its questions; at most MOST heads."""
    attachment, tokens = engine.attachment, engine.tokens
    ids = [tokens.encode(text + "\n\n").ids for text, _ in EXAM]
    layout = lay_out([len(i) for i in ids])
    sink, reach = engine.sink_page(Consensus(), lambda: False), engine.config.reach
    read = Ingest(
        attachment, sink, ids, layout, Consensus(), engine.cache_dtype, reach, BATCH, lambda n: None, lambda: False
    )
    pages = read.independent()
    edition = Edition(attachment, pages, [], engine.config.cuda_graphs, lambda: Trusted([], 0))
    passages = Passages.cut(pages, pages.n_pages)
    shapes = attachment.query_shapes
    everyone = [Head(layer, head, 0.0) for layer, (count, _) in enumerate(shapes) for head in range(count)]
    trust, surprise = torch.zeros(len(everyone), device=pages.filled.device), torch.zeros(len(shapes))
    for number, (_, asked) in enumerate(EXAM, 1):
        question = edition.question(build_prompt(tokens, engine.config, asked), lambda: False)
        probed = question.probe(question.ids, question.asking)
        gain = gains(pages, question, probed.queries, attachment.scaling, everyone)
        trust += gain[:, passages.of.to(gain.device) == number].sum(1) / gain.sum(1).clamp(min=1e-9)
        close = [
            passages.most(closeness(pages, values[:, question.wording], layer))[:, 1:]
            for layer, values in enumerate(probed.values)
        ]
        surprise -= torch.stack([rarity(close[0]) @ one for one in close]).log_softmax(1)[:, number - 1].cpu()
    order = trust.argsort(descending=True, stable=True)[:MOST].tolist()
    shares = (trust / len(EXAM)).tolist()
    return Trusted([everyone[one]._replace(trust=shares[one]) for one in order], int(surprise.argmin()))


def _kept(file: Path, shapes: Sequence[tuple[int, int]]) -> Trusted | None:
    """What an exam found before; None where there is no file, or none that can be used."""
    try:
        found = _FILE.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    real = all(0 <= h.layer < len(shapes) and 0 <= h.head < shapes[h.layer][0] and h.trust >= 0 for h in found.heads)
    return found if found.heads and real and 0 <= found.layer < len(shapes) else None


def _keep(file: Path, found: Trusted) -> None:
    """Write down what an exam found, or say why that was not possible: it is taken again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f".{file.name}.{id(found)}")
        whole.write_bytes(_FILE.dump_json(found))
        whole.replace(file)
    except OSError as error:
        logger.warning("what the exam found could not be kept: %s", error)
