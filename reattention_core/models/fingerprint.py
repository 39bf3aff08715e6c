"""Which model a corpus was read by, field by field; knows no corpus.

A name is no identity: the fields come from the configuration, the weights' values and the tokenizer itself. Weights are
sampled (64 or more values of every tensor, evenly spaced), so an edit of a few values between them is not seen.
"""

import hashlib
import json

from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "quantization_config")
"""Configuration entries that say where a model came from, not what it is; the type is a field of its own."""

SAMPLES = 64


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The model's identity: architecture, config, weights, dtype, tokenizer.

    Args:
        model: loaded, attached or not.
        tokenizer: its tokenizer, a fast one.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in IGNORED and "attn_impl" not in k}
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call may set these two anew; they do not change which tokens a text has.
    rules["truncation"] = rules["padding"] = None
    return {
        "architecture": type(model).__name__,
        "config": _digest(json.dumps(config, sort_keys=True, default=str).encode()),
        "weights": sampled_weights(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": _digest(json.dumps(rules, sort_keys=True).encode()),
    }


def sampled_weights(model: PreTrainedModel) -> str:
    """A digest of some values of every tensor of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        samples = tensor.detach().flatten()[:: max(tensor.numel() // SAMPLES, 1)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + samples.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
