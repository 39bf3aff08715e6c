"""Attaches to any standard Hugging Face causal LM and proves on the spot that its logits stay the same; knows no family.

`Attachment(model)` records how every layer rotates, then compares the stock logits with those of the attached model, in
one pass and through the cache in chunks. A model that differs is refused with the reason: that test is the whole support
policy. Detaching restores the model exactly.
"""

from types import TracebackType
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from reattention_core import attention
from reattention_core.attention import Site
from reattention_core.cache.kv_cache import ContextCache
from reattention_core.errors import InvalidRequestError, UnsupportedModelError
from reattention_core.models.idle import Idle
from reattention_core.models.rotary import Recorded, StandIn, recording
from reattention_core.select.base import Rotate
from reattention_core.select.fixed import Everything

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest RMS of the logits' difference over the RMS of the stock logits, by type of weights."""

HALF_TOLERANCES = {0.5: 4e-2, 0.75: 1e-1}
"""The same for 16-bit weights, by the share of tokens that must keep it: their stock logits already differ that much between
chunk sizes, and where experts are chosen rounding sends some tokens to others."""

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Layer types that the cache can serve; others (linear, convolution, chunked) keep state of another kind."""


class Attachment:
    """A model whose attention is ours, from construction (or `with`) until `detach`.

    Args:
        model: a causal LM in evaluation mode.

    Attributes:
        window: tokens the model was trained on; no position given to it reaches this number.
        error: the self-test's largest RMS error ratio.
        shapes: (G, key D, value D) of every layer.
        query_shapes: (H, D) of every layer.
        scaling: factor on q·k of every layer.
        rotations: rotary positions of every layer.

    Raises:
        UnsupportedModelError: the model is of a kind that cannot be attached, or its logits would change.
        InvalidRequestError: it is attached already.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_known(model)
        self.model, self.window = model, _trained_window(model)
        self._stock = model.config._attn_implementation
        self._attentions = _attention_modules(model)
        if any(hasattr(module, "_reattention") for module in self._attentions):
            raise InvalidRequestError(
                "this model is attached already: close the engine that holds it, or share that engine"
            )
        self._stand_ins = [StandIn(m) for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        self.window = min([self.window, *(s.reach for s in self._stand_ins if s.reach is not None)])
        self._hooks: list[Any] = []
        self._idle = Idle(set())
        self._sites: list[Site] = []
        try:
            if not self._stand_ins:
                raise UnsupportedModelError(
                    f"{model.config.model_type} has no rotary embedding: its positions are learned, added to the scores "
                    "(ALiBi) or absent, and cannot be re-assigned"
                )
            self.error = self._attach_and_compare()
        except BaseException:
            self.detach()
            raise

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @property
    def per_token(self) -> int:
        """Numbers in the keys and values of one token, over all layers."""
        return sum(heads * (key + value) for heads, key, value in self.shapes)

    def detach(self) -> None:
        """Restore the model exactly as it was; calling it twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        for stand_in in self._stand_ins:
            stand_in.remove()
        self._idle.remove()
        for module in self._attentions:
            if hasattr(module, "_reattention"):
                del module._reattention
        self._hooks, self._stand_ins = [], []
        if self.model.config._attn_implementation == attention.NAME:
            self.model.set_attn_implementation(self._stock)

    @torch.inference_mode()
    def _attach_and_compare(self) -> float:
        """Install the attention, run the self-test, and give the largest error ratio."""
        vocabulary, device = embedding_rows(self.model), self.model.device
        n = min(24, self.window)
        ids = torch.arange(7, 7 + 13 * n, 13, device=device)[None] % vocabulary
        with recording(self._attentions, self._stand_ins) as recorded:
            stock = self.model(ids, use_cache=False).logits.float()
        self._install(recorded)
        try:
            one_pass = self.model(ids, use_cache=False).logits.float()
            cache = ContextCache(len(self._attentions), Everything(), self.window)
            chunks = [
                self.model(chunk, past_key_values=cache, use_cache=True).logits.float() for chunk in ids.split(7, 1)
            ]
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise UnsupportedModelError(
                f"{self._kind()} failed in the attach self-test: {type(error).__name__}: {error}"
            ) from error
        sites = self._sites
        self.scaling: list[float] = [site.scaling for site in sites]
        self.rotations: list[Rotate] = [site.rotation for site in sites]
        self.query_shapes: list[tuple[int, int]] = [site.query_shape for site in sites]
        self.shapes: list[tuple[int, int, int]] = [
            (layer.tail_keys.tokens.shape[1], layer.tail_keys.tokens.shape[3], layer.tail_values.tokens.shape[3])
            for layer in cache.layers
        ]
        ours = one_pass, torch.cat(chunks, 1)
        ratios = [_error_ratio(logits, stock) for logits in ours]
        if not all(_agree(logits, stock, self.model.dtype) for logits in ours):
            raise UnsupportedModelError(
                f"{self._kind()}: attached logits differ from the stock model's by {ratios[0]:.1e} in one pass and "
                f"{ratios[1]:.1e} in chunks (RMS ratio), more than rounding does, so it would answer differently"
            )
        foreign = sorted({name for site in sites for name in site.foreign})
        if foreign:
            raise UnsupportedModelError(
                f"{self._kind()} passes {', '.join(foreign)} to attention, which may hide tokens in a way the self-test cannot see"
            )
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if window and getattr(config, "layer_types", None) is None and not any(site.windowed for site in sites):
            raise UnsupportedModelError(
                f"{self._kind()} has a sliding window of {window} that it does not tell attention about, so it cannot be kept"
            )
        return max(ratios)

    def _install(self, recorded: Recorded) -> None:
        """Give every attention module its `Site`, switch rotation off and our attention on."""
        config = self.model.config.get_text_config()
        types = getattr(config, "layer_types", None)
        for module in self._attentions:
            sliding = types is not None and types[_index(module)] == "sliding_attention"
            site = Site(recorded.rotation(module), config.sliding_window if sliding else None)
            module._reattention = site  # type: ignore[assignment]
            self._sites.append(site)
            self._hooks += [
                module.register_forward_pre_hook(_remember_cache, with_kwargs=True),
                module.register_forward_hook(_forget_cache, always_call=True),
            ]
        for stand_in in self._stand_ins:
            stand_in.active = True
        self._idle = Idle(recorded.spared)
        AttentionInterface.register(attention.NAME, attention.attention)
        self.model.set_attn_implementation(attention.NAME)
        if self.model.config._attn_implementation != attention.NAME:
            raise UnsupportedModelError(f"{self._kind()} did not accept another attention implementation")

    def _kind(self) -> str:
        types = getattr(self.model.config.get_text_config(), "layer_types", None)
        layers = ", ".join(sorted(set(types))) if types else type(self._attentions[0]).__name__
        return f"{self.model.config.model_type} ({len(self._attentions)} layers: {layers})"


def refuse_known(model: PreTrainedModel) -> None:
    """Refuse what no self-test needs to look at.

    Raises:
        UnsupportedModelError: an encoder-decoder, latent (MLA) caches, or layers that are not attention.
    """
    config = model.config.get_text_config()
    name = model.config.model_type
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; only decoder-only causal LMs can be attached")
    if getattr(config, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"{name} caches a latent of its keys (MLA), which cannot be scored by q·k in this version"
        )
    types = getattr(config, "layer_types", None) or ()
    foreign = sorted(set(types) - set(LAYER_TYPES))
    if foreign:
        raise UnsupportedModelError(
            f"{name} has layers of type {', '.join(foreign)}; this version serves {' and '.join(LAYER_TYPES)}"
        )
    if not _attention_modules(model):
        raise UnsupportedModelError(f"{name} has no attention layer that transformers' AttentionInterface reaches")


def _attention_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's attention modules by layer."""
    found = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and "Attention" in type(module).__name__
    ]
    wrappers = {outer for outer in found for inner in outer.modules() if inner is not outer and inner in set(found)}
    return sorted((module for module in found if module not in wrappers), key=_index)


def _index(module: torch.nn.Module) -> int:
    return module.layer_idx  # type: ignore[return-value]


def embedding_rows(model: PreTrainedModel) -> int:
    """Token ids that the model has an embedding for."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _trained_window(model: PreTrainedModel) -> int:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(window, int) or window < 1:
        raise UnsupportedModelError(
            f"{model.config.model_type}: the config names no max_position_embeddings, so the trained window is unknown"
        )
    return window


def _remember_cache(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the cache that this forward pass brings, before the layer updates it."""
    given = [v for v in (*args, *kwargs.values()) if hasattr(v, "get_seq_length")]
    if given and not isinstance(given[0], ContextCache):
        raise InvalidRequestError(
            f"an attached model needs a ContextCache, got {type(given[0]).__name__}: pass one, or detach first"
        )
    module._reattention.cache = given[0] if given else None  # type: ignore[union-attr]


def _forget_cache(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Let go of the cache, so that a finished question's memory is freed."""
    module._reattention.cache = None  # type: ignore[union-attr]


def _agree(ours: torch.Tensor, stock: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits [1, n, vocabulary] differ by rounding alone."""
    if dtype in TOLERANCE:
        return _error_ratio(ours, stock) <= TOLERANCE[dtype]
    each = ((ours - stock).pow(2).mean(-1) / stock.pow(2).mean(-1)).sqrt().flatten()
    return all(float(each.quantile(share)) <= most for share, most in HALF_TOLERANCES.items())


def _error_ratio(ours: torch.Tensor, stock: torch.Tensor) -> float:
    return ((ours - stock).pow(2).mean().sqrt() / stock.pow(2).mean().sqrt()).item()
