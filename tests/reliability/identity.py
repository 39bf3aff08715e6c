"""Faults of identity: a corpus met by another model than the one that read it, however alike they are called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from reattention_core import Config, Engine
from reattention_core.errors import CorpusExistsError, FingerprintMismatchError
from reattention_core.models.fingerprint import SAMPLES
from tests.conftest import tiny_model
from tests.core.tiny_tokenizers import byte_level_bpe
from tests.reliability.fault import fault
from tests.reliability.shelf import ABOUT, CPU, made, save

TEXT = "The warranty of the device lasts two years, as its manufacturer says. " * 4
CONFIG = Config(cache_dtype="float32", max_new_tokens=4, stop=())


class Renamed(LlamaForCausalLM):
    pass


def in_double(model: PreTrainedModel) -> Any:
    return {"model": model.double()}


def with_one_tensor_changed(model: PreTrainedModel) -> Any:
    with torch.no_grad():
        model.base_model.layers[1].mlp.up_proj.weight.mul_(1.001)
    return {}


def with_two_tensors_swapped(model: PreTrainedModel) -> Any:
    first, second = (layer.self_attn.k_proj for layer in model.base_model.layers)
    first.weight, second.weight = second.weight, first.weight
    return {}


def with_another_config(model: PreTrainedModel) -> Any:
    model.config.rms_norm_eps = 1e-5
    return {}


def with_other_frequencies(model: PreTrainedModel) -> Any:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 20_000.0}
    return {}


def of_another_class(model: PreTrainedModel) -> Any:
    renamed = Renamed(model.config).eval()
    renamed.load_state_dict(model.state_dict())
    return {"model": renamed}


def with_another_token(model: PreTrainedModel) -> Any:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<another>"])
    return {"tokenizer": tokenizer}


def with_another_sink(model: PreTrainedModel) -> Any:
    return {"config": CONFIG.model_copy(update={"sink": "Another text. " * 20})}


def with_a_half_cache(model: PreTrainedModel) -> Any:
    return {"config": CONFIG.model_copy(update={"cache_dtype": "bfloat16"})}


CHANGES: list[tuple[Callable[[PreTrainedModel], Any], str]] = [
    (in_double, "dtype"),
    (with_one_tensor_changed, "weights"),
    (with_two_tensors_swapped, "weights"),
    (with_another_config, "config"),
    (with_other_frequencies, "config"),
    (of_another_class, "architecture"),
    (with_another_token, "tokenizer"),
    (with_another_sink, "sink"),
    (with_a_half_cache, "cache_dtype"),
]


@contextmanager
def engine(root: Path, **changed: Any) -> Iterator[Engine]:
    made = {"model": tiny_model(), "tokenizer": byte_level_bpe(), "config": CONFIG, **changed}
    with Engine(**made, store=root) as found:
        yield found


def refused(found: Engine, field: str) -> None:
    try:
        found.open("c")
    except FingerprintMismatchError as error:
        assert error.fields == (field,), error
        assert "again" in str(error)
    else:
        raise AssertionError(f"another {field} was not noticed")


@fault(
    "Another model",
    "weights, their type, the configuration, rotation, class, tokenizer, sink and cache type, each changed alone: refused with the "
    "field's name; the name stays taken, another is free; the model that read it still opens it",
)
def another_model(folder: Path) -> int:
    with engine(folder) as first:
        expected = first.ingest(TEXT, name="c", progress=False).ask("How long?").text
    for number, (change, field) in enumerate(CHANGES):
        model = tiny_model()
        with engine(folder, **{"model": model, **change(model)}) as other:
            refused(other, field)
            try:
                other.ingest(TEXT, name="c", progress=False)
            except CorpusExistsError:
                pass
            else:
                raise AssertionError("the corpus of another model was overwritten")
            assert other.ingest(TEXT, name=f"mine-{number}", progress=False).ask("How long?").usage.completion_tokens
        with engine(folder) as first:
            assert first.open("c").ask("How long?").text == expected
    return len(CHANGES)


def trained(model: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.lm_head.weight.sum().backward()
    optimizer.step()


def with_other_weights(model: PreTrainedModel) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


def merged(model: PreTrainedModel) -> None:
    model.base_model.layers[0].self_attn.q_proj.weight.data += 1


@fault(
    "Weights change under an engine",
    "a step of training, other weights loaded, an adapter merged into one tensor: refused by asking, searching, prompting, "
    "ingesting and editing (the merged one, which no tensor counts, where something is saved or opened), by the name of the field; "
    "nothing is written, and with the old weights all is as it was",
)
def changed_under_an_engine(folder: Path) -> int:
    times = 0
    for number, change in enumerate((trained, with_other_weights, merged)):
        model = tiny_model()
        old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with engine(folder / str(number), model=model) as found:
            corpus = found.ingest(TEXT, name="c", progress=False)
            answer = corpus.ask("How long?")
            change(model)
            saving: list[Callable[[], Any]] = [
                lambda found=found: found.open("c"),
                lambda found=found: found.ingest(TEXT, name="d", progress=False),
                lambda corpus=corpus: corpus.add("Another document.", progress=False),
            ]
            using: list[Callable[[], Any]] = [
                lambda corpus=corpus: corpus.ask("How long?"),
                lambda corpus=corpus: corpus.find("How long?"),
                lambda found=found: found.generate("Who?"),
                lambda found=found: found.ingest(TEXT, progress=False),
            ]
            for call in saving if change is merged else [*saving, *using]:
                try:
                    call()
                except FingerprintMismatchError as error:
                    assert error.fields == ("weights",)
                    assert "another engine" in str(error)
                else:
                    raise AssertionError
                times += 1
            assert found.store.names() == ["c"]
            assert found.store.unfinished() == []
            model.load_state_dict(old)
            assert found.open("c").ask("How long?").text == corpus.ask("How long?").text == answer.text
    return times


@fault(
    "A field of the fingerprint, one by one",
    "every field that a manifest names, changed, missing or added: refused with its name",
)
def fields(folder: Path) -> int:
    with engine(folder) as first:
        identity, times = first.identity, 0
        save(first.store, "c", made("c"), about=type(ABOUT)("tiny", "independent", identity))
        for field in identity:
            for now in ({**identity, field: "other"}, {k: v for k, v in identity.items() if k != field}):
                times += _named(first, now, field)
        times += _named(first, {**identity, "new": "of a later version"}, "new")
    return times


def _named(found: Engine, now: dict[str, str], field: str) -> int:
    try:
        found.store.load("c", now, CPU)
    except FingerprintMismatchError as error:
        assert error.fields == (field,)
        assert field in str(error)
        return 1
    raise AssertionError(field)


def between_samples(weight: torch.Tensor) -> None:
    """All numbers of a matrix but those that the fingerprint looks at."""
    kept = weight.detach().flatten().clone()
    step = max(kept.numel() // SAMPLES, 1)
    changed = kept * 1.5
    changed[::step] = kept[::step]
    with torch.no_grad():
        weight.copy_(changed.view_as(weight))


@fault(
    "A model that reads otherwise under the same fingerprint",
    "each of 7 matrices of a layer changed only between the weights that are sampled; attention scaled otherwise: "
    "the sink, read again "
    "at opening, is not what was saved: refused, the field is called canary",
)
def canary(folder: Path) -> int:
    with engine(folder) as first:
        expected = first.ingest(TEXT, name="c", progress=False).ask("How long?").text
        identity = first.identity
    matrices = [n for n, weight in tiny_model().base_model.layers[0].named_parameters() if weight.dim() == 2]
    for name in matrices:
        model = tiny_model()
        between_samples(model.base_model.layers[0].get_parameter(name))
        with engine(folder, model=model) as other:
            assert other.identity == identity
            refused(other, "canary")
    whole = torch.nn.functional.scaled_dot_product_attention
    model = tiny_model()

    def scaled(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return whole(query * 2, *args, **kwargs)

    with (
        engine(folder, model=model) as other,
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", scaled),
    ):
        refused(other, "canary")
    with engine(folder) as first:
        assert first.open("c").ask("How long?").text == expected
    return len(matrices) + 1
