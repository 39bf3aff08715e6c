"""A case's document written over the original: the pages must be those of a whole ingest, and come back."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_bench.case import Case, Group
from reattention_bench.corpora import Corpora, changed
from reattention_core import Config, Consensus, Engine, LongHeads
from reattention_core.cache.pages import Pages
from reattention_core.cache.tiered import TieredPages
from reattention_core.corpus import Corpus
from reattention_core.documents import Document
from reattention_core.errors import ReAttentionError
from reattention_core.select import Context, Reader, Selector

TEXTS = [
    f"Report number {n}. The quick brown fox jumps over the lazy dog, {n} times or more than that." * 3
    for n in range(5)
]
NEEDLE = "The pass key is 4711. The quick brown fox jumps over the lazy dog. " * 2
DOCUMENTS = [Document(text=text, id=str(number)) for number, text in enumerate(TEXTS)]
CASE = Case("t", 0, 0, "tune", changes={1: Document(text=NEEDLE, id="1"), 3: Document(text="Short.", id="3")})
GROUP = Group(DOCUMENTS, [CASE])


def held(pages: Pages) -> list[torch.Tensor]:
    """What is written in all layers, document after document."""
    return [tensor.flatten(1, 2)[:, pages.addresses] for tensor in (*pages.keys, *pages.values)]


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rule", [None, LongHeads.for_window(512)])
def test_pages_are_those_of_a_whole_ingest(engine: Engine, rule: Selector | None) -> None:
    corpus = engine.ingest(DOCUMENTS, strategy=rule, progress=False)
    before = [tensor.clone() for tensor in held(corpus.pages)]
    summaries = [tensor.clone() for tensor in corpus.pages.summaries]
    whole = engine.ingest(GROUP.of(CASE), strategy=rule, progress=False)
    with changed(engine, corpus, CASE, rule) as own:
        assert same(held(own.pages), held(whole.pages))
        assert not same(held(own.pages), before)
        assert own.pages.filled.sum() == whole.pages.filled.sum()
        assert [d.document.text for d in own.documents] == [d.document.text for d in whole.documents]
        if rule is not None:
            first = own.documents[1].start // 32
            chunk = int(own.pages.chunks(own.pages.summary_size)[first])
            ours, theirs = own.pages.summaries[1][:, chunk], whole.pages.summaries[1][:, chunk]
            assert torch.allclose(ours, theirs, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(held(corpus.pages), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(corpus.pages.summaries, summaries, strict=True))


@pytest.mark.parametrize("strategy", ["consensus", "reattention"])
def test_answers_are_those_of_a_whole_ingest(engine: Engine, strategy: str) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    whole = engine.ingest(GROUP.of(CASE), progress=False)
    theirs = whole.ask("What is the pass key?", strategy=strategy)
    with changed(engine, corpus, CASE) as own:
        ours = own.ask("What is the pass key?", strategy=strategy)
    assert ours.text == theirs.text
    assert [s.quote for s in ours.sources] == [s.quote for s in theirs.sources]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_a_lower_tier_answers_are_those_of_a_whole_ingest_too(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, device: str
) -> None:
    config = Config(cache_dtype="float32", max_new_tokens=8, stop=(), device_bytes=200_000, ingest_tokens=64)
    rule = Consensus(share=1e-9)  # whatever the tiny model prefers, the changed document is read
    with Engine(model.to(device), tokenizer, config, tmp_path) as engine:
        corpus = engine.ingest(DOCUMENTS, progress=False)
        assert isinstance(corpus.pages, TieredPages)
        before = [tensor.clone() for tensor in held(corpus.pages.below)]
        plain = engine.ingest(DOCUMENTS, progress=False).ask("What is the pass key?", strategy=rule).text
        theirs = engine.ingest(GROUP.of(CASE), progress=False).ask("What is the pass key?", strategy=rule)
        with changed(engine, corpus, CASE) as own:
            assert isinstance(own.pages, TieredPages) and own.pages.below.pinned == corpus.pages.below.pinned
            ours = own.ask("What is the pass key?", strategy=rule)
        assert ours.text == theirs.text
        assert [s.quote for s in ours.sources] == [s.quote for s in theirs.sources]
        assert all(torch.equal(a, b) for a, b in zip(held(corpus.pages.below), before, strict=True))
        assert corpus.ask("What is the pass key?", strategy=rule).text == plain != ours.text


def test_what_lies_on_disk_is_not_written_over(engine: Engine) -> None:
    engine.ingest(DOCUMENTS, name="c", progress=False)
    with pytest.raises(ReAttentionError, match="on disk"), changed(engine, engine.open("c"), CASE):
        pass


def test_it_comes_back_after_an_error(engine: Engine) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    before = [tensor.clone() for tensor in held(corpus.pages)]
    with pytest.raises(KeyboardInterrupt), changed(engine, corpus, CASE):
        raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(held(corpus.pages), before, strict=True))


def test_a_longer_document_is_refused(engine: Engine) -> None:
    corpus = engine.ingest(DOCUMENTS, progress=False)
    case = Case("t", 0, 0, "tune", changes={1: Document(text=NEEDLE * 9, id="1")})
    with (
        pytest.raises(ReAttentionError, match=r"document 1 has \d+ tokens, there is room for"),
        changed(engine, corpus, case),
    ):
        pass


def test_a_group_is_read_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all rules that need no summaries; a rule that does gives its pages to the others."""
    sizes, ingest = [], Engine.ingest

    def counting(self: Engine, documents: Sequence[Document], **options: object) -> Corpus:
        sizes.append(len(documents))
        return ingest(self, documents, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "ingest", counting)
    rules = [Consensus(), Consensus(max_passages=1), LongHeads.for_window(512)]
    for mode, expected in (("independent", [5, 2, 2, 2]), ("joint", [5, 5, 5])):
        corpora = Corpora(engine, GROUP, mode, rules)  # type: ignore[arg-type]
        for rule in rules:
            with corpora.of(CASE, rule) as (corpus, seconds):
                assert "4711" in corpus.documents[1].document.text
                assert seconds > 0
        assert sizes == expected
        sizes.clear()


def test_a_page_left_empty_may_be_cited(engine: Engine) -> None:
    """LongHeads votes for whole chunks, the empty end of a shorter document included."""
    rule = LongHeads.for_window(512)
    corpus = engine.ingest(DOCUMENTS, strategy=rule, progress=False)
    case = Case("t", 0, 0, "tune", changes={n: Document(text="Short.", id=str(n)) for n in range(1, 5)})
    with changed(engine, corpus, case, rule) as own:
        answer = own.ask("What is the pass key?", strategy=Everywhere(**rule.model_dump()))
    assert {source.quote for source in answer.sources} >= {"Short."}


class Everywhere(LongHeads):
    """Cites every page."""

    def reader(self, context: Context) -> Reader:
        reader = super().reader(context)
        assert context.pages is not None
        pages = torch.arange(context.pages.n_pages)
        reader.cited = lambda most=5: pages  # type: ignore[method-assign]
        return reader
