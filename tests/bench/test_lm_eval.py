"""The engine as a model of lm-evaluation-harness, through the harness itself; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reattention_core import Engine
from reattention_core.errors import InvalidRequestError

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from reattention_bench.lm_eval_model import ReAttentionLM


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


def test_loglikelihood_is_the_models(engine: Engine) -> None:
    context, continuation = "The quick brown", " fox jumps"
    lm = ReAttentionLM(engine)
    ((ours, greedy),) = lm.loglikelihood([request("loglikelihood", context, continuation)], disable_tqdm=True)
    ((spaced, _),) = lm.loglikelihood([request("loglikelihood", context + " ", "fox jumps")], disable_tqdm=True)
    (rolling,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", context + continuation)], disable_tqdm=True)
    tokens, first = engine.tokens, engine.tokenizer.eos_token_id
    whole, before = tokens.encode(context + continuation).ids, tokens.encode(context).ids
    engine.attachment.detach()
    ids = torch.tensor([[first, *whole]])
    with torch.inference_mode():
        each = engine.attachment.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert ours == pytest.approx(each[len(before) :].sum().item(), abs=1e-3)
    assert spaced == ours
    assert rolling == pytest.approx(each.sum().item(), abs=1e-3)
    assert greedy is False


def test_the_likeliest_continuation_is_greedy(engine: Engine) -> None:
    """Of all words of one token, exactly the one that the model puts first."""
    lm, tokens = ReAttentionLM(engine), engine.tokens
    before = [engine.tokenizer.eos_token_id, *tokens.encode("The").ids]
    words = [chr(letter) for letter in range(33, 127)]
    words = [word for word in words if len(tokens.encode("The" + word).ids) == len(before)]
    asked = [request("loglikelihood", "The", word) for word in words]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    with torch.inference_mode():
        best = int(engine.attachment.model(torch.tensor([before]), use_cache=False).logits[0, -1].argmax())
    ids = [tokens.encode("The" + word).ids[-1] for word in words]
    assert [greedy for _, greedy in found] == [i == best for i in ids]
    assert len({value for value, _ in found}) == len(words)


def test_generation_stops_and_knows_its_settings(engine: Engine) -> None:
    lm = ReAttentionLM(engine)
    free = engine.generate("The quick brown", max_new_tokens=12).text
    stop = free[4:6]
    asked = {"until": [stop], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    (text,) = lm.generate_until([request("generate_until", "The quick brown", asked)], disable_tqdm=True)
    assert text == free[: free.index(stop)]
    with pytest.raises(InvalidRequestError, match="num_beams"):
        lm.generate_until([request("generate_until", "x", {"num_beams": 4})], disable_tqdm=True)


def test_a_long_prompt_is_read_as_documents(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    ingest = Engine.ingest

    def spy(self: Engine, documents: Any, **options: Any) -> Any:
        read.append(documents)
        return ingest(self, documents, **options)

    monkeypatch.setattr(Engine, "ingest", spy)
    text = " ".join(f"Day {n}: it rains." for n in range(120))
    prompt, settings = f"{text}\nOn which day is it dry? It is day", {"max_gen_toks": 4, "until": []}
    form = engine.config.question_form
    for documents in (False, True):
        lm = ReAttentionLM(engine, documents=documents)
        lm.generate_until([request("generate_until", prompt, settings)], disable_tqdm=True)
    (parts,) = read
    assert len(parts) > 1
    assert " ".join(part.text for part in parts) == text
    assert engine.config.question_form == form


def test_a_task_of_the_harness(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind of request, from files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "The quick brown fox", "next": " jumps"}, {"text": "A cache keeps", "next": " the keys"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{next}}}}"
"""
    (tmp_path / "ends.yaml").write_text(
        "task: ends\noutput_type: generate_until\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 3}\n"
        "metric_list: [{metric: exact_match}]\n" + common
    )
    (tmp_path / "likely.yaml").write_text(
        "task: likely\noutput_type: loglikelihood\nmetric_list: [{metric: acc}, {metric: perplexity}]\n" + common
    )
    (tmp_path / "words.yaml").write_text(
        "task: words\noutput_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}]\n"
        + common.replace('doc_to_target: "{{next}}"', 'doc_to_target: "{{text}}"').replace(
            'doc_to_text: "{{text}}"', 'doc_to_text: ""'
        )
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model=ReAttentionLM(engine), tasks=["ends", "likely", "words"], task_manager=manager, bootstrap_iters=0
    )
    assert found is not None
    assert found["results"]["ends"]["exact_match,none"] in (0, 0.5, 1)
    assert found["results"]["likely"]["perplexity,none"] > 1
    assert found["results"]["words"]["word_perplexity,none"] > 1
    assert found["n-samples"]["ends"]["effective"] == 2
