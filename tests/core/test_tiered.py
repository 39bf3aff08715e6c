"""Pages on the host with an index on the device: the same answers, evidence and sources as with all of them on the device."""

import gc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Consensus, Corpus, Engine, LongHeads, ReAttention, Selector
from reattention_core.cache import stage as staging
from reattention_core.cache.pages import PAGE, Pages
from reattention_core.cache.pinned import pinned
from reattention_core.cache.stage import Stage
from reattention_core.cache.stitched import Run, StitchedPages, onto, stitch
from reattention_core.cache.tiered import TieredPages
from reattention_core.errors import CorruptCacheError
from reattention_core.prompts import build_prompt
from reattention_core.select.closeness import closeness
from reattention_core.select.recall import recall
from reattention_kernels import KeyIndex

CPU = torch.device("cpu")
DOCUMENTS = [
    f"The warranty of device {i} lasts {i} years, says its manufacturer in {1950 + i}. " * (i + 1) for i in range(9)
]
QUESTION = "How long does the warranty of device 4 last?"


@pytest.fixture
def corpus(engine: Engine) -> Corpus:
    return engine.ingest(DOCUMENTS, progress=False)


def over(corpus: Corpus, below: Pages | None = None, stage: Stage | None = None) -> Corpus:
    """The same documents with their pages in a lower tier."""
    pages = TieredPages(corpus.pages if below is None else below, stage or Stage(CPU))
    return Corpus(corpus.engine, None, pages, corpus.documents, corpus.mode)


def in_runs(pages: Pages) -> Pages:
    """The same pages as three runs."""
    starts = pages.first.unique().tolist()
    cuts = [0, starts[3], starts[6], pages.n_pages]
    return StitchedPages([Run(pages, a, b) for a, b in pairwise(cuts)])


@pytest.mark.parametrize("below", [lambda pages: pages, in_runs], ids=["one", "runs"])
@pytest.mark.parametrize("rule", [Consensus(), Consensus(candidates=0), ReAttention.for_window(512)], ids=str)
def test_answers_and_sources_are_those_of_the_same_corpus_on_the_device(
    corpus: Corpus, rule: Selector, below: Callable[[Pages], Pages]
) -> None:
    tiered = over(corpus, below(corpus.pages))
    for question in (QUESTION, "Who says so?"):
        ours, theirs = tiered.ask(question, strategy=rule), corpus.ask(question, strategy=rule)
        assert ours.text == theirs.text
        assert [s.quote for s in ours.sources] == [s.quote for s in theirs.sources] != []
        assert torch.tensor([s.score for s in ours.sources]) == pytest.approx(
            torch.tensor([s.score for s in theirs.sources]), abs=0.02
        )
        assert ours.usage.window_tokens == theirs.usage.window_tokens
    assert [s.quote for s in tiered.find(QUESTION)] == [s.quote for s in corpus.find(QUESTION)]


def test_longheads_reads_its_summaries_on_the_device_and_the_rest_below(engine: Engine) -> None:
    rule = LongHeads.for_window(engine.window)
    corpus = engine.ingest(DOCUMENTS, strategy=rule, progress=False)
    assert over(corpus).ask(QUESTION, strategy=rule).text == corpus.ask(QUESTION, strategy=rule).text


def test_evidence_is_that_of_all_keys_within_eight_bits(engine: Engine, corpus: Corpus) -> None:
    tiered, prompt = over(corpus), build_prompt(engine.tokens, engine.config, QUESTION)
    with engine.busy():
        heads, layer = engine.trusted.heads[:12], engine.trusted.layer
        found, close = [], []
        for one in (tiered, corpus):
            question = one.edition.question(prompt, lambda: False)
            probed = question.probe(question.ids, question.asking)
            found.append(recall(one.pages, question, probed.queries, engine.attachment.scaling, heads))
            close.append(torch.cat([closeness(one.pages, probed.values[n], n) for n in (0, layer)]))
    total = found[1].sum()
    assert total > 0
    assert ((found[0] - found[1]).abs() / total).max() < 0.01
    assert not torch.equal(*found), "the index was read"
    read = {(head.layer, head.head // 2) for head in heads}
    assert set(tiered.pages._index) == read, "and only what the trusted heads use"
    assert (close[0] - close[1]).abs().max() < 0.01
    assert not torch.equal(*close), "the index was read"
    assert set(tiered.pages._values) == {0, layer}


def test_the_index_takes_a_byte_for_each_number_and_a_scale_a_page(corpus: Corpus) -> None:
    pages = TieredPages(corpus.pages, Stage(CPU))
    before = pages.index_bytes
    index = pages.scan_head(1, 0)
    assert isinstance(index, KeyIndex) and pages.scan_head(1, 0) is index
    assert pages.index_bytes - before == pages.n_pages * (PAGE * 16 + 4)
    keys = corpus.pages.keys[1][:1]
    assert (index.codes * index.scale[..., None, None] - keys).abs().max() <= index.scale.max() / 2 * 1.001
    assert pages.nbytes == corpus.pages.nbytes + pages.index_bytes


def test_the_index_is_made_in_parts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TieredPages(corpus.pages, Stage(CPU)).scan_head(0, 1)
    monkeypatch.setattr("reattention_core.cache.tiered.AT_ONCE", 3)
    for ours, theirs in zip(TieredPages(corpus.pages, Stage(CPU)).scan_head(0, 1), whole, strict=True):
        assert torch.equal(ours, theirs)


def test_pages_that_were_brought_stay_until_their_places_are_needed(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "STEP", 4)
    stage = Stage(CPU)
    one, two = (TieredPages(corpus.pages, stage) for _ in range(2))

    def wanted(pages: TieredPages, *numbers: int) -> tuple[int, int]:
        before = stage.hits, stage.misses
        staged, [row] = pages.staged([torch.tensor(numbers)])
        for layer in range(2):
            staged.arrive(layer)
            assert torch.equal(staged.keys[layer][:, row], corpus.pages.keys[layer][:, list(numbers)])
            assert torch.equal(staged.values[layer][:, row], corpus.pages.values[layer][:, list(numbers)])
            assert torch.equal(staged.keys[layer][:, 0], corpus.pages.keys[layer][:, 0]), "the sink comes first"
        assert torch.equal(staged.filled[row], corpus.pages.filled[list(numbers)])
        return stage.hits - before[0], stage.misses - before[1]

    assert wanted(one, 3, 1, 2) == (0, 3)
    size = stage.nbytes
    assert wanted(one, 2, 3) == (2, 0)
    assert wanted(one, 5) == (0, 1)  # in the place of 1, which was not wanted for longest
    assert wanted(one, 2, 3) == (2, 0)
    assert wanted(one, 1) == (0, 1)
    assert wanted(two, 1) == (0, 1), "another corpus's page of the same number is another"
    assert stage.nbytes == size
    assert wanted(one, *range(1, 9)) == (0, 8), "a larger stage begins empty"
    assert stage.nbytes > size


def test_questions_to_two_corpora_share_a_stage(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STEP", 4)
    corpora = [engine.ingest(DOCUMENTS[:5], progress=False), engine.ingest(DOCUMENTS[5:], progress=False)]
    stage = Stage(CPU)
    tiered = [over(corpus, stage=stage) for corpus in corpora]
    for _ in range(2):
        for ours, theirs in zip(tiered, corpora, strict=True):
            assert ours.ask(QUESTION).text == theirs.ask(QUESTION).text


def test_a_saved_corpus_is_read_from_disk_page_by_page_and_damage_is_found(engine: Engine, tmp_path: Path) -> None:
    expected = engine.ingest(DOCUMENTS, name="all", progress=False).ask(QUESTION)
    opened = engine.open("all")
    assert opened.pages.mapped
    tiered = over(opened)
    assert isinstance(tiered.pages, TieredPages) and tiered.pages.tier == "disk"
    assert tiered.ask(QUESTION).text == expected.text
    [file] = (tmp_path / "store").rglob("pages.safetensors")
    data = bytearray(file.read_bytes())
    data[-8] ^= 1  # the last value of the last page
    file.write_bytes(data)
    damaged = over(engine.open("all"))
    damaged.pages.staged([torch.tensor([1, 2])])  # pages that are not read are not looked at
    last = damaged.pages.n_pages - 1
    for _ in range(2):  # what failed to come is not taken for what is there
        with pytest.raises(CorruptCacheError):
            damaged.pages.staged([torch.tensor([last])])
    staged, [row] = damaged.pages.staged([torch.tensor([1, 2])])
    assert torch.equal(staged.keys[0][:, row], opened.pages.take(0, torch.tensor([1, 2]))[0])


def test_an_edit_of_a_tiered_corpus_stays_tiered_and_is_as_on_the_device(engine: Engine, corpus: Corpus) -> None:
    tiered = over(corpus)
    for one in (tiered, corpus):
        one.add("The warranty of device 44 lasts 44 years.")
        one.remove(one.documents[2].document.id)
    assert isinstance(tiered.pages, TieredPages)
    assert tiered.ask(QUESTION).text == corpus.ask(QUESTION).text
    joined = [engine.join(one, engine.ingest("A fox is quick.", progress=False)) for one in (tiered, corpus)]
    assert isinstance(joined[0].pages, TieredPages)
    assert joined[0].ask(QUESTION).text == joined[1].ask(QUESTION).text


@pytest.mark.gpu
@pytest.mark.parametrize("pin", [True, False])
def test_on_a_gpu_pages_travel_while_layers_run_and_recorded_passes_read_the_stage(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pin: bool
) -> None:
    config = Config(stop=(), cache_dtype="float32", max_new_tokens=16)
    with Engine(model.to("cuda"), tokenizer, config, tmp_path) as engine:
        corpus = engine.ingest(DOCUMENTS, progress=False)
        host = onto(corpus.pages, CPU)
        tiered = over(corpus, pinned(host) if pin else host, engine.tiers.stage)
        assert host.pinned == pin and host.keys[0].is_pinned() == pin
        for question in (QUESTION, "Who says so?", QUESTION):
            for rule in ("consensus", "reattention"):
                ours, theirs = tiered.ask(question, strategy=rule), corpus.ask(question, strategy=rule)
                assert ours.text == theirs.text
                assert [s.quote for s in ours.sources] == [s.quote for s in theirs.sources]
        assert engine.stats().staged_hits > 0 < engine.stats().staged_misses
        at = host.keys[0]
        del tiered, host
        gc.collect()
        assert not at.is_pinned(), "let go with the pages"


def test_taking_pages_is_the_same_wherever_they_lie(corpus: Corpus) -> None:
    pages = torch.tensor([7, 1, 30, 2, 12])
    for below in (corpus.pages, in_runs(corpus.pages), stitch([Run(corpus.pages, 0, corpus.pages.n_pages)])):
        for ours, whole in zip(below.take(1, pages), (corpus.pages.keys[1], corpus.pages.values[1]), strict=True):
            assert torch.equal(ours, whole[:, pages])
