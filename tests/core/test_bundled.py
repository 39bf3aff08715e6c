"""What must hold on the bundled model itself: equality with the stock model, and reach beyond its window."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reattention_bench.haystack import cut, document, hide, sentences
from reattention_core import Config, Engine
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.models.attach import Attachment
from reattention_core.models.loading import BUNDLED, load
from reattention_core.select.fixed import Everything

TEXT = """The lighthouse keeper wrote everything down. On the first of March the supply ship brought flour, oil and
eleven letters. On the second the fog came in from the west and stayed for nine days. He counted the ships by their
horns, and when the fog lifted he found that he had counted one ship twice. """


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.from_pretrained(store=tmp_path_factory.mktemp("store")) as made:
        yield made


@torch.inference_mode()
def test_logits_equal_the_stock_model() -> None:
    """With the window covering everything: one pass, and chunks through the cache, over 600 tokens."""
    model, tokenizer = load(BUNDLED, dtype="float32")
    ids = torch.tensor([tokenizer(TEXT * 8).input_ids[:600]])
    stock = model(ids).logits
    with Attachment(model) as attachment:
        assert (model(ids, use_cache=False).logits - stock).abs().max() <= 1e-4
        cache = ContextCache(len(attachment.shapes), Everything(), attachment.window)
        chunks = [model(chunk, past_key_values=cache, use_cache=True).logits for chunk in ids.split(170, 1)]
        assert (torch.cat(chunks, 1) - stock).abs().max() <= 1e-4
    assert torch.equal(model(ids).logits, stock)


def test_answers_from_a_document_with_its_source(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "harbour.txt").write_text("The harbour master of Ostby is called Ingrid Solheim. She keeps two dogs.")
    (tmp_path / "mill.txt").write_text("The mill at Varn was built in 1742. It grinds rye on Tuesdays.")
    corpus = engine.ingest(tmp_path, progress=False)
    answer = corpus.ask("Who is the harbour master of Ostby?")
    assert "Ingrid Solheim" in answer.text
    assert answer.sources[0].title == "harbour"
    assert "Ingrid Solheim" in answer.sources[0].quote


def test_a_passkey_in_the_first_sentence_of_a_document_is_read() -> None:
    """As the lab hides it, in the third of three documents without titles; docs/quality.md says how far this holds."""
    with Engine.from_pretrained(question_form="\n{question}", max_new_tokens=8) as engine:
        parts = cut(sentences("noise", Path()), 1500, lambda text: len(engine.tokens.encode(text).ids))
        for key in ("4463", "47896", "1519"):
            needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
            hidden = hide(parts, [(0.5, needle)], lambda text: len(engine.tokens.encode(text).ids))
            assert hidden[1].text.startswith("The pass key")
            corpus = engine.ingest([document(0, parts[0]), hidden[1]], progress=False)
            assert corpus.ask("What is the pass key? The pass key is").text.startswith(key)


def passkey(tokens: int) -> tuple[str, str]:
    """A number in repeated filler, in the middle (the form of landmark attention, arXiv 2305.16300)."""
    number = str(random.Random(tokens).randint(10000, 99999))
    filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    half = filler * (tokens // 48)  # of 24 tokens each
    about = "One important thing is hidden in a lot of text that does not matter. Find it and remember it.\n"
    return f"{about}{half}The pass key is {number}. Remember it. {number} is the pass key. {half}", number


@pytest.mark.slow
def test_full_attention_fails_beyond_the_window_and_the_engine_does_not() -> None:
    """The control: stock attention answers at 9,000 tokens and not at 10,300; attached, the model answers beyond."""
    question = "What is the pass key? The pass key is"
    model, tokenizer = load(BUNDLED, dtype="float32")

    def stock(tokens: int) -> bool:
        text, number = passkey(tokens)
        ids = tokenizer(f"{text}\n{question}", return_tensors="pt").input_ids
        assert abs(ids.shape[1] - tokens) < 300, f"{ids.shape[1]} tokens"
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        return number in tokenizer.decode(out[0, ids.shape[1] :])

    assert stock(9000)
    assert not stock(10600)
    text, number = passkey(16000)
    with Engine(model, tokenizer, Config(question_form="\nQuestion: {question}")) as plain:
        corpus = plain.ingest([text[i : i + 4000] for i in range(0, len(text), 4000)], progress=False)
        assert corpus.n_tokens > 15000
        assert number in corpus.ask("What is the pass key?\nAnswer: The pass key is", max_new_tokens=8).text
