"""The likelihood of a question behind cached passages is what the model gives it as plain text; heads are examined once."""

from pathlib import Path

import pytest
import torch

from reattention_core import Engine
from reattention_core.cache.pages import PAGE, pages_for
from reattention_core.errors import CancelledError
from reattention_core.likelihood import likelihood
from reattention_core.prompts import LISTENED_TOKENS, build_prompt
from reattention_core.trusted import examine, trusted

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "A cache keeps the keys.",
    "The lighthouse keeper writes the weather into a green book. " * 2,
]


def test_it_is_the_models_own_of_the_text_behind_sink_and_passage(engine: Engine) -> None:
    """Passages of different lengths, in one batch and as two together; pages that are not full leave no gap."""
    corpus = engine.ingest(TEXTS, progress=False)
    prompt = build_prompt(engine.tokens, engine.config, "Who keeps the keys?")
    own = [torch.arange(d.start // PAGE, d.start // PAGE + pages_for(d.n_tokens)) for d in corpus.documents]
    ours = likelihood(engine.attachment, corpus.pages, prompt.listened, prompt.words, own, lambda: False)
    encoded = engine.tokens.encode_documents([d.document for d in corpus.documents])
    for document, found in zip(encoded, ours.tolist(), strict=True):
        ids = torch.tensor([[*engine.sink, *document.ids, *prompt.listened]])
        with torch.inference_mode():
            scores = engine.attachment.model(ids, use_cache=False).logits[0].log_softmax(-1)
        count = len(prompt.listened) - prompt.words.start
        expected = sum(float(scores[at - 1, ids[0, at]]) for at in range(ids.shape[1] - count, ids.shape[1]))
        assert found == pytest.approx(expected, abs=1e-3)
    pair, alone = torch.cat([own[1], own[0]]), own[0]
    together = likelihood(engine.attachment, corpus.pages, prompt.listened, prompt.words, [pair, alone], lambda: False)
    assert float(together[1]) == pytest.approx(float(ours[0]), abs=1e-3)
    assert abs(float(together[0] - ours[0])) > 1e-3, "what stands before counts"


def test_many_passages_are_compared_in_several_passes_that_can_be_cancelled(engine: Engine) -> None:
    corpus = engine.ingest(TEXTS, progress=False)
    prompt = build_prompt(engine.tokens, engine.config, "Who keeps the keys? " * 40)
    assert prompt.words.stop - prompt.words.start == LISTENED_TOKENS
    pages = [torch.tensor([1 + n % (corpus.pages.n_pages - 1)]) for n in range(20)]
    args = engine.attachment, corpus.pages, prompt.listened, prompt.words
    many = likelihood(*args, pages, lambda: False)
    for n in (0, 7, 19):
        assert float(likelihood(*args, [pages[n]], lambda: False)[0]) == pytest.approx(float(many[n]), abs=1e-3)
    answers = iter([False, True])
    with pytest.raises(CancelledError):
        likelihood(*args, pages, lambda: next(answers))


def test_heads_are_examined_once_and_kept(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REATTENTION_HOME", str(tmp_path))
    found = trusted(engine)
    assert [head.trust for head in found.heads] == sorted((head.trust for head in found.heads), reverse=True)
    assert len({(head.layer, head.head) for head in found.heads}) == len(found.heads)
    assert all(0 <= head.trust <= 1 for head in found.heads)
    assert 0 <= found.layer < len(engine.attachment.shapes)
    file = next((tmp_path / "exams").iterdir())
    monkeypatch.setattr("reattention_core.trusted.examine", lambda engine: pytest.fail("examined again"))
    assert trusted(engine) == found
    monkeypatch.setattr("reattention_core.trusted.examine", examine)
    for damaged in (
        b"",
        b"[]",
        b"[[[0, 0]], 0]",
        b"[[], 0]",
        b"[[[999, 0, 0.5]], 0]",
        b"[[[0, -1, 0.5]], 0]",
        b"[[[0, 0, 0.5]], 99]",
        b"\xff",
    ):
        file.write_bytes(damaged)
        assert trusted(engine) == found
