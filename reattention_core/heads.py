"""Examines which of a model's heads find what a question asks for, and keeps the result; knows no corpus of the user's.

The model reads the exam's texts as a small corpus. A head's trust is the share of its gain (its attention beyond that of an
empty question) that goes to the text that answers, averaged over the exam's questions. No labels of the user's, no training:
a few seconds, once for each model, then a file.
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
from reattention_core.cache.pages import PAGE
from reattention_core.edition import Edition
from reattention_core.home import home
from reattention_core.ingest import Ingest
from reattention_core.prompts import build_prompt
from reattention_core.select import Consensus
from reattention_core.select.base import Head
from reattention_core.select.exam import EXAM
from reattention_core.select.recall import gains

if TYPE_CHECKING:
    from reattention_core.engine import Engine

MOST = 32
"""Heads that are kept."""

BATCH = 2048
"""Tokens of the exam's texts that are read at a time."""

logger = logging.getLogger(__name__)

_FILE = TypeAdapter(list[Head])


def trusted_heads(engine: "Engine") -> list[Head]:
    """The heads of an engine's model, most trusted first: from the file, or examined now; the caller has the model."""
    about = json.dumps([engine.identity, engine.config.question_form, EXAM], sort_keys=True)
    file = home() / "heads" / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"
    heads = _kept(file, engine.attachment.query_shapes)
    if heads is None:
        heads = examine(engine)
        _keep(file, heads)
    return heads


def examine(engine: "Engine") -> list[Head]:
    """Read the exam's texts and put its questions; the most trusted heads first, at most MOST."""
    attachment, tokens = engine.attachment, engine.tokens
    ids = [tokens.encode(text + "\n\n").ids for text, _ in EXAM]
    layout = lay_out([len(i) for i in ids])
    sink, reach = engine.sink_page(Consensus(), lambda: False), engine.config.reach
    read = Ingest(
        attachment, sink, ids, layout, Consensus(), engine.cache_dtype, reach, BATCH, lambda n: None, lambda: False
    )
    pages = read.independent()
    edition = Edition(attachment, pages, [], engine.config.cuda_graphs, lambda: [])
    shapes = attachment.query_shapes
    everyone = [Head(layer, head, 0.0) for layer, (count, _) in enumerate(shapes) for head in range(count)]
    starts = torch.tensor(layout.starts) // PAGE
    owner = torch.searchsorted(starts, torch.arange(pages.n_pages), right=True).to(pages.filled.device)
    trust = torch.zeros(len(everyone), device=pages.filled.device)
    for number, (_, asked) in enumerate(EXAM, 1):
        question = edition.question(build_prompt(tokens, engine.config, asked), lambda: False)
        gain = gains(pages, question, attachment.scaling, everyone)
        trust += gain[:, owner == number].sum(1) / gain.sum(1).clamp(min=1e-9)
    order = trust.argsort(descending=True, stable=True)[:MOST].tolist()
    shares = (trust / len(EXAM)).tolist()
    return [everyone[one]._replace(trust=shares[one]) for one in order]


def _kept(file: Path, shapes: Sequence[tuple[int, int]]) -> list[Head] | None:
    """Heads that were examined before; None where there is no file, or none that can be used."""
    try:
        heads = _FILE.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    real = all(0 <= h.layer < len(shapes) and 0 <= h.head < shapes[h.layer][0] and h.trust >= 0 for h in heads)
    return heads if heads and real else None


def _keep(file: Path, heads: Sequence[Head]) -> None:
    """Write the heads down, or say why that was not possible: they are examined again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f".{file.name}.{id(heads)}")
        whole.write_text(json.dumps(heads))
        whole.replace(file)
    except OSError as error:
        logger.warning("the examined heads could not be kept: %s", error)
