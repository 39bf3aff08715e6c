"""Pages read where they lie give what a gathered window gives; on a GPU recorded passes do, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Engine
from reattention_core.cache.buffers import BufferCache
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.cache.layout import lay_out
from reattention_core.cache.pages import Pages
from reattention_core.models.attach import Attachment
from reattention_core.select import Consensus
from reattention_core.select.base import Head, Selection, Trusted
from reattention_core.select.fixed import Settled
from tests.core.families import FAMILIES, build

IDS = torch.tensor([[5, 9, 33, 71, 2, 90, 14, 14, 60, 8, 27, 101, 3, 44, 45, 46, 80, 12, 6, 99, 31, 7, 64, 23]])

FUSED = ["llama", "llama-yarn", "gpt_oss", "gemma2", "cohere", "glm", "phi3", "stablelm", "qwen2-window", "smollm3"]
"""One of each: plain, scaled, sinks, soft cap, interleaved, partial either way, a window, layers without positions."""

UNKNOWN = ["nanochat"]
"""Families that rotate in a way the kernel does not know."""


def pages_for(attachment: Attachment) -> Pages:
    """Four pages of random keys and values: the sink, a document of 40 tokens, one of 20."""
    layout = lay_out([40, 20])
    pages = Pages.allocate(attachment.shapes, layout.first, layout.filled, torch.float32, torch.device("cpu"))
    for tensor in (*pages.keys, *pages.values):
        tensor.normal_()
    return pages


@torch.inference_mode()
def logits(attachment: Attachment, pages: Pages) -> torch.Tensor:
    """Through the cache in chunks of 7, over the sink and the pages 1 and 3."""
    reader = Settled(Selection.of_pages(pages, torch.tensor([0, 1, 3])))
    cache = ContextCache(len(attachment.shapes), reader, attachment.window, pages)
    return torch.cat([attachment.model(c, past_key_values=cache, use_cache=True).logits for c in IDS.split(7, 1)], 1)


@pytest.mark.parametrize("family", FUSED)
def test_the_fused_kernel_gives_the_same_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Attachment(build(family, FAMILIES[family])) as attachment:
        pages = pages_for(attachment)
        assert all(rotation.angles(torch.empty(0), 64) is not None for rotation in attachment.rotations)
        monkeypatch.setenv("REATTENTION_KERNELS", "reference")
        gathered = logits(attachment, pages)
        monkeypatch.setenv("REATTENTION_KERNELS", "triton")
        fused = logits(attachment, pages)
    assert not torch.equal(fused, gathered), "the kernel did not run"
    assert (fused - gathered).abs().max() <= 1e-4 * gathered.abs().max()


TURNED = [pytest.param(family, "cpu", torch.float32) for family in FUSED] + [
    pytest.param(family, "cuda", dtype, marks=pytest.mark.gpu)
    for family in FUSED
    if family != "cohere"  # turns in float32 and rounds once
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
]


@torch.inference_mode()
@pytest.mark.parametrize(("family", "device", "dtype"), TURNED)
def test_the_kernel_turns_as_the_models_own_code_does(
    family: str, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every bit, on a GPU in every type."""
    with Attachment(build(family, FAMILIES[family]).to(device)) as attachment:
        for rotation, (groups, dim, _) in zip(attachment.rotations, attachment.shapes, strict=True):
            x = torch.randn(2, 40 if device == "cpu" else 1000, groups, dim).transpose(1, 2).to(device, dtype)
            monkeypatch.setenv("REATTENTION_KERNELS", "reference")
            own = rotation(x, 7)
            monkeypatch.setenv("REATTENTION_KERNELS", "triton")
            assert torch.equal(rotation(x, 7), own)


@pytest.mark.parametrize("family", UNKNOWN)
def test_an_unknown_rotation_is_gathered(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Attachment(build(family, FAMILIES[family])) as attachment:
        pages = pages_for(attachment)
        monkeypatch.setenv("REATTENTION_KERNELS", "reference")
        gathered = logits(attachment, pages)
        monkeypatch.setenv("REATTENTION_KERNELS", "triton")
        assert torch.equal(logits(attachment, pages), gathered)


@torch.inference_mode()
def test_a_recorded_pass_does_not_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read the window of its recording for ever: here the pages are of another type than the queries."""
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")
    with Attachment(build("llama", FAMILIES["llama"])) as attachment:
        for kind in (torch.float32, torch.bfloat16):
            layout = lay_out([40])
            pages = Pages.allocate(attachment.shapes, layout.first, layout.filled, kind, torch.device("cpu"))
            selection = Selection.of_pages(pages, torch.tensor([0, 1]))
            assert selection.table is not None
            position, count = torch.arange(3), torch.tensor([3], dtype=torch.int32)
            cache = BufferCache(
                attachment.shapes,
                Settled(selection),
                attachment.window,
                pages,
                selection.table,
                torch.empty(0),
                32,
                position,
                count,
            )
            if kind == torch.float32:
                attachment.model(IDS[:, :3], past_key_values=cache, use_cache=True)
                assert cache.held, "nothing keeps the angles that the recording reads"
            else:
                with pytest.raises(RuntimeError, match="recorded pass"):
                    attachment.model(IDS[:, :3], past_key_values=cache, use_cache=True)


DOCUMENTS = [f"The {animal} lives in the {place}. " * 12 for animal, place in (("fox", "wood"), ("seal", "sea"))]


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("question", ["Where does the fox live?", "Where? " * 20])
def test_recorded_passes_write_what_gathered_windows_write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    cache_dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Heads are examined, passages recalled and texts written in three ways; weights are float32, so little is rounded."""
    model = model.to("cuda")
    answers, evidence, trust = [], [], []
    for number, (kernels, graphs) in enumerate((("reference", False), ("auto", False), ("auto", True))):
        monkeypatch.setenv("REATTENTION_KERNELS", kernels)
        monkeypatch.setenv("REATTENTION_HOME", str(tmp_path / str(number)))
        with Engine(model, tokenizer, Config(cuda_graphs=graphs, stop=(), cache_dtype=cache_dtype)) as engine:
            corpus = engine.ingest(DOCUMENTS, progress=False)
            for _ in range(3):  # recorded, replayed, replayed
                answer = corpus.ask(question, max_new_tokens=24, stop=())
                answers.append(answer.text)
                evidence.append([(s.document_id, round(s.score, 2)) for s in answer.sources])
            trust.append([head.trust for head in engine.trusted.heads])
    assert trust[1] == pytest.approx(trust[0], abs=1e-3)
    assert trust[2] == pytest.approx(trust[0], abs=1e-3)
    assert len(set(answers)) == 1, answers
    assert all(found == evidence[0] for found in evidence), evidence
    assert answer.usage.completion_tokens == 24


def again(run: Callable[[], Any], device: torch.device, pool: object = None) -> Callable[[], Any]:
    """Stands for a recording: a replay runs the function anew, into what it gave when it was recorded."""
    run()
    result = run()

    def replay() -> Any:
        with torch.inference_mode():
            new = run()
            pairs = zip(result, new, strict=True) if isinstance(new, list) else [(result, new)]
            for old, value in pairs:
                old.copy_(value)
        return result

    return replay


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are recorded on a CPU, with kernels in Triton's interpreter."""
    monkeypatch.setattr("reattention_core.passes.recording", again)
    monkeypatch.setattr("reattention_core.graphs.Graphs.possible", staticmethod(lambda pages: True))
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: None)
    monkeypatch.setenv("REATTENTION_KERNELS", "triton")


def test_passes_of_fixed_shapes_give_what_passes_that_are_run_as_they_come_give(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    without_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Recall, comparison of documents alone and together, prompt and tokens; a second question repeats the first's passes."""
    monkeypatch.setattr("reattention_core.graphs.ROWS", 2)
    # Examining all heads is not what is tested, and would take the interpreter minutes.
    monkeypatch.setattr("reattention_core.trusted.examine", lambda engine: Trusted([Head(1, 0, 1.0)], 1))
    questions, found = ["Where does the fox live?", "Who lives in the sea?"], []
    for number, (fixed, recorded) in enumerate(((False, False), (True, False), (True, True))):
        monkeypatch.setattr("reattention_core.graphs.Graphs.possible", staticmethod(lambda pages, fixed=fixed: fixed))
        monkeypatch.setenv("REATTENTION_HOME", str(tmp_path / str(number)))
        with Engine(model, tokenizer, Config(cuda_graphs=recorded, stop=(), cache_dtype="float32")) as engine:
            corpus = engine.ingest(["The fox lives in the wood.", "Seals: sea.", "Crows: roof."], progress=False)
            for question in questions:
                answer = corpus.ask(question, max_new_tokens=3, stop=(), strategy=Consensus(gain=0))
                scores = [round(source.score, 3) for source in answer.sources]
                found.append((answer.text, scores, answer.usage.window_tokens, answer.usage.completion_tokens))
            passes = corpus._asked().graphs
            assert bool(passes._comparisons) == bool(passes._answers) == fixed
            assert all(one._prompts for one in passes._answers.values())
    assert found[:2] == found[2:4] == found[4:]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_model_that_fits_no_fixed_shape_answers_all_the_same(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recorded: bool,
    without_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pages in bfloat16 under weights in float32 are gathered; what was begun is done as passes come, and it is said once."""
    monkeypatch.setattr("reattention_core.trusted.examine", lambda engine: Trusted([Head(1, 0, 1.0)], 1))
    with Engine(model, tokenizer, Config(cuda_graphs=recorded, stop=(), cache_dtype="bfloat16")) as engine:
        corpus = engine.ingest(["The fox lives in the wood.", "Seals: sea."], progress=False)
        answers = [corpus.ask("Who lives in the sea?", max_new_tokens=3, stop=()).text for _ in range(2)]
        monkeypatch.setattr("reattention_core.graphs.Graphs.possible", staticmethod(lambda pages: False))
        corpus = engine.ingest(["The fox lives in the wood.", "Seals: sea."], progress=False)
        assert answers == [corpus.ask("Who lives in the sea?", max_new_tokens=3, stop=()).text] * 2
    said = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert len(said) == recorded, said


@pytest.mark.gpu
def test_passes_that_are_recorded_and_passes_that_are_not_agree_in_every_bit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In bfloat16, where a product of another shape would round otherwise: the likelihood of every token drawn."""
    model = model.to("cuda", torch.bfloat16)
    found, drawn = [], list[torch.Tensor]()

    def keep(self: object, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn.append(scores.clone())
        return scores

    monkeypatch.setattr("reattention_core.generate.Numbers.__call__", keep)
    for recorded in (False, True, True):
        drawn.clear()
        monkeypatch.setenv("REATTENTION_HOME", str(tmp_path / str(recorded)))
        with Engine(model, tokenizer, Config(cuda_graphs=recorded, stop=())) as engine:
            corpus = engine.ingest(DOCUMENTS, progress=False)
            answers = [
                corpus.ask(question, max_new_tokens=24, stop=()) for question in ("Where does the fox live?", "Where?")
            ]
        found.append(([[source.score for source in answer.sources] for answer in answers], torch.cat(drawn)))
    for scores, drawn_scores in found[1:]:
        assert scores == found[0][0]
        assert torch.equal(drawn_scores, found[0][1])
