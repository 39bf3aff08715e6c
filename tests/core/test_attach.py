"""Attaching changes no logit, for every family of the table, and leaves no trace; what would change is refused."""

import sys
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.errors import InvalidRequestError, UnsupportedModelError
from reattention_core.models.attach import Attachment
from reattention_core.models.idle import does_nothing
from reattention_core.select.fixed import Everything
from tests.close import assert_close
from tests.core.families import FAMILIES, REFUSED, UNDECIDED, build

IDS = torch.tensor([[5, 9, 33, 71, 2, 90, 14, 14, 60, 8, 27, 101, 3, 44, 45, 46, 80, 12, 6, 99, 31, 7, 64, 23]])


@torch.inference_mode()
def attached_logits(attachment: Attachment, ids: torch.Tensor) -> list[torch.Tensor]:
    """In one pass without a cache, and through the cache in chunks of 7."""
    model = attachment.model
    cache = ContextCache(len(attachment.shapes), Everything(), attachment.window)
    chunks = [model(c, past_key_values=cache, use_cache=True).logits for c in ids.split(7, 1)]
    return [model(ids, use_cache=False).logits, torch.cat(chunks, 1)]


def worst(ours: list[torch.Tensor], stock: torch.Tensor) -> float:
    return max((logits - stock).abs().max().item() for logits in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_keeps_its_logits(family: str) -> None:
    model = build(family, FAMILIES[family])
    with torch.inference_mode():
        stock = model(IDS, use_cache=False).logits
    with Attachment(model) as attachment:
        assert worst(attached_logits(attachment, IDS), stock) <= 1e-4
        known = [rotation.angles(torch.empty(0), 64) is not None for rotation in attachment.rotations]
        assert all(known) is (family != "nanochat"), "whether the fused kernel can rotate as this family does"
    with torch.inference_mode():
        assert torch.equal(model(IDS, use_cache=False).logits, stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_attaches_with_weights_in_bfloat16(family: str) -> None:
    """Rounding may send tokens of a mixture to other experts; that is no reason to refuse it."""
    Attachment(build(family, FAMILIES[family]).bfloat16()).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", REFUSED)
def test_family_is_refused_with_a_reason(family: str, dtype: torch.dtype) -> None:
    model = build(family, REFUSED[family]).to(dtype)
    with pytest.raises(UnsupportedModelError, match=r"\w+ .{20,}"):
        Attachment(model)


@pytest.mark.parametrize("family", UNDECIDED)
def test_undecided_family_is_right_or_refused(family: str) -> None:
    model = build(family, UNDECIDED[family])
    with torch.inference_mode():
        stock = model(IDS, use_cache=False).logits
    try:
        attachment = Attachment(model)
    except UnsupportedModelError:
        return
    with attachment:
        assert worst(attached_logits(attachment, IDS), stock) <= 1e-4


def test_at_least_fifty_families() -> None:
    assert len({entry.get("model_type", label) for label, entry in FAMILIES.items()}) >= 50


def test_detaching_restores_the_model_exactly(model: PreTrainedModel) -> None:
    rotary = model.model.rotary_emb
    before = {id(module): set(vars(module)) for module in model.modules()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    implementation, forward = model.config._attn_implementation, rotary.forward
    with Attachment(model):
        assert rotary.forward != forward
        assert model.config._attn_implementation == "reattention"
    assert {id(module): set(vars(module)) for module in model.modules()} == before
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert model.config._attn_implementation == implementation
    assert rotary.forward == forward


def test_a_failed_attach_leaves_the_model_alone() -> None:
    model = build("hunyuan_v1_dense", REFUSED["hunyuan_v1_dense"])
    with torch.inference_mode():
        stock = model(IDS, use_cache=False).logits
    with pytest.raises(UnsupportedModelError, match="differ"):
        Attachment(model)
    with torch.inference_mode():
        assert torch.equal(model(IDS, use_cache=False).logits, stock)


def test_a_foreign_cache_is_refused_while_attached(model: PreTrainedModel) -> None:
    with Attachment(model), pytest.raises(InvalidRequestError, match="ContextCache, got DynamicCache"):
        model(IDS, past_key_values=DynamicCache(), use_cache=True)


def test_keys_reach_the_cache_without_a_position(model: PreTrainedModel) -> None:
    """The same token gives the same first-layer key wherever it stands."""
    with Attachment(model) as attachment, torch.inference_mode():
        cache = ContextCache(len(attachment.shapes), Everything(), attachment.window)
        model(torch.tensor([[4, 4, 9, 4]]), past_key_values=cache, use_cache=True)
        keys = cache.layers[0].tail_keys.tokens[0]
        assert torch.equal(keys[:, 0], keys[:, 1])
        assert torch.equal(keys[:, 0], keys[:, 3])
        assert not torch.equal(keys[:, 0], keys[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_wrong_attention_is_caught(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, dtype: torch.dtype
) -> None:
    """The self-test is what stands between a subtle bug and a user: break rotation a little, and it must refuse."""
    from reattention_core.positions import Rotation

    model, right = model.to(dtype), Rotation.__call__
    monkeypatch.setattr(
        Rotation, "__call__", lambda self, x, start: right(self, x, start + 1 if x.shape[1] == 2 else start)
    )
    with pytest.raises(UnsupportedModelError, match="differ"):
        Attachment(model)
    assert isinstance(model, LlamaForCausalLM)


def test_an_attached_model_still_gives_gradients(model: PreTrainedModel) -> None:
    """What was kept from passes without gradients must not stand in the way of one with them."""
    with Attachment(model):
        model(IDS, use_cache=False).logits.sum().backward()
    attached = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model(IDS, use_cache=False).logits.sum().backward()
    assert torch.allclose(model.model.embed_tokens.weight.grad, attached, rtol=1e-3, atol=1e-3)


def rotating(model: PreTrainedModel) -> Any:
    """The function of the model's modelling file that rotates queries and keys, as it stands there now."""
    return vars(sys.modules[type(model.model.layers[0].self_attn).__module__])["apply_rotary_pos_emb"]


def test_the_models_own_rotation_is_not_run_while_it_changes_nothing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace, own, runs = type(model.model.layers[0].self_attn).__module__, rotating(model), []

    def counted(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        runs.append(cos)
        return own(q, k, cos, sin, unsqueeze_dim)

    monkeypatch.setattr(f"{namespace}.apply_rotary_pos_emb", counted)
    with Attachment(model) as attachment:
        runs.clear()
        model(IDS, use_cache=False)
        assert len(runs) == 2 * len(attachment.shapes), "queries and keys of each layer, in their window"
        assert all((cos != 1).any() for cos in runs)
    assert rotating(model) is counted


def test_models_beside_an_attached_one_rotate_as_ever() -> None:
    """The function is the modelling file's, which all models of a family share."""
    mine, other = (build("llama", FAMILIES["llama"]) for _ in range(2))
    own = rotating(mine)
    with torch.no_grad():
        stock = other(IDS, use_cache=False).logits
        first, second = Attachment(mine), Attachment(build("llama", FAMILIES["llama"]))
        attached = mine(IDS, use_cache=False).logits
        assert torch.equal(other(IDS, use_cache=False).logits, stock)
        first.detach()
        first.detach()
        assert rotating(mine) is not own, "another attached model still needs it"
        assert_close("detached", mine(IDS, use_cache=False).logits, attached, 1e-4)
        second.detach()
    assert rotating(mine) is own


def test_a_rotation_that_reorders_dimensions_is_run() -> None:
    """As DeepSeek's does: with cos = 1 and sin = 0 it still puts pairs one behind another."""

    def reordering(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        q, k = (x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q, k))
        return q * cos + q * sin, k * cos + k * sin

    def plain(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        return q * cos + q * sin, k * cos + k * sin

    def of_one(x: Any, cos: Any, sin: Any) -> Any:
        return x * cos + x * sin

    q, k, angle = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8), torch.rand(1, 1, 3, 8)
    assert does_nothing(plain, q, k, angle.cos(), angle.sin())
    assert does_nothing(plain, q, k, sin=angle.sin(), cos=angle.cos())
    assert not does_nothing(reordering, q, k, angle.cos(), angle.sin())
    assert not does_nothing(of_one, q, angle.cos(), angle.sin())
