"""Attaching changes no logit, for every family of the table, and leaves no trace; what would change is refused."""

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from reattention_core.cache.kv_cache import ContextCache
from reattention_core.errors import InvalidRequestError, UnsupportedModelError
from reattention_core.models.attach import Attachment
from reattention_core.select.fixed import Everything
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
