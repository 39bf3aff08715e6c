"""Tiny random causal language models of many families, built offline from transformers.

What the table knows: one set of tiny sizes (`TINY`) and, for each family, only what has to differ
so that the feature the family stands for is at work within 24 tokens: a sliding window of 8,
layers without positions, sinks, a soft cap, a partly rotated head, rescaled frequencies.
`FAMILIES` are expected to give the stock logits once attached; `REFUSED` are expected to be
refused at attach; `UNDECIDED` may go either way, but never to wrong logits.

What it does not know: anything of the library under test, of real checkpoints or of their sizes.
Every weight is drawn anew after the build, norms, biases and sinks included, because initial
weights (all-equal norms, near-uniform attention) would let a wrong rotation pass unseen. A key is
a label; it is the transformers model type unless the entry names another one as `model_type`.
"""

import copy
import dataclasses

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Emu3ForCausalLM,
    PreTrainedModel,
)

# Keys that a family's config class does not declare are left out for that family.
TINY = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    # mixture of experts, under the names in use
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    moe_num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
)

WINDOW = dict(sliding_window=8)
MIXED = dict(WINDOW, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
FULL_LAST = dict(WINDOW, layer_types=["sliding_attention", "sliding_attention", "full_attention"])


def _rope(kind: str, **more) -> dict:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


def _per_layer_type(sliding: dict, full: dict) -> dict:
    base = dict(rope_type="default", rope_theta=10000.0)
    return dict(rope_parameters=dict(sliding_attention=base | sliding, full_attention=base | full))


YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.5 + 0.5 * i for i in range(8)]


def _longrope(original: int) -> dict:
    more = dict(short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=original)
    rope = _rope("longrope", factor=256 / original, **more)
    return dict(rope, original_max_position_embeddings=original)


FAMILIES: dict[str, dict] = {
    # rotate-half over the whole head
    "arcee": {},
    "aria_text": dict(moe_topk=2, moe_num_shared_experts=1),
    "bitnet": {},
    "dbrx": dict(
        d_model=64,
        n_heads=4,
        n_layers=3,
        max_seq_len=256,
        attn_config=dict(kv_n_heads=2, clip_qkv=1.0, rope_theta=10000.0),
        ffn_config=dict(ffn_hidden_size=32, moe_num_experts=4, moe_top_k=2, hidden_size=64),
    ),
    "dots1": MIXED | dict(n_shared_experts=1, first_k_dense_replace=1),
    "emu3": dict(model_type="emu3_text_model"),
    "flex_olmo": {},
    "gemma": {},
    "granite": dict(attention_multiplier=0.25),
    "granitemoe": dict(attention_multiplier=0.25),
    "granitemoeshared": dict(attention_multiplier=0.25, shared_intermediate_size=32),
    "hy_v3": {},
    "hyperclovax": dict(attention_multiplier=0.25),
    "jais2": {},
    "llama": {},
    "minimax_m2": {},
    "mixtral": {},
    "nanochat": {},  # norm without weights after the rotation, which commutes with it
    "olmo": dict(clip_qkv=1.0),
    "olmo2": {},
    "olmoe": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "internlm3": {},
    "iquestcoder": {},
    "seed_oss": {},
    "solar_open": dict(n_shared_experts=1),
    # interleaved pairs
    "cohere": dict(logit_scale=1.0, use_qk_norm=True),
    "ernie4_5": {},
    "ernie4_5_moe": dict(moe_k=2, moe_num_shared_experts=1, moe_layer_end_index=2),
    "glm": {},  # and half of the head
    "glm4": {},
    "helium": {},
    # part of the head
    "glm4_moe": dict(use_qk_norm=True),
    "gpt_neox": {},
    "nemotron": {},
    "persimmon": {},
    "phi": dict(qk_layernorm=True),
    "phi3": _rope("default", partial_rotary_factor=0.5),
    "stablelm": dict(qk_layernorm=True),
    # a window of 8 on some layers or on all
    "cwm": FULL_LAST | LLAMA3,
    "gemma2": MIXED | dict(query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
    "gemma3_text": MIXED | dict(query_pre_attn_scalar=16),  # other frequencies when full
    "laguna": MIXED | dict(num_attention_heads_per_layer=[4, 2, 4]),
    "mellum": MIXED | _per_layer_type({}, dict(rope_theta=500.0)),
    "ministral": MIXED,
    "mistral": WINDOW,
    "modernbert-decoder": dict(
        local_attention=16,
        cls_token_id=1,
        sep_token_id=2,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "olmo3": MIXED,
    "qwen2-window": dict(WINDOW, model_type="qwen2", use_sliding_window=True, max_window_layers=1),
    "starcoder2": WINDOW,
    "vaultgemma": MIXED | dict(query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
    # layers without positions
    "afmoe": MIXED,
    "beam": FULL_LAST | dict(mlp_layer_types=["dense", "sparse", "sparse"], n_group=1, topk_group=1),
    "cohere2": MIXED | dict(logit_scale=1.0),
    "cohere2_moe": MIXED | dict(logit_scale=1.0),
    "exaone4": MIXED,
    "exaone_moe": MIXED,
    "kolibri1": MIXED,
    "smollm3": dict(no_rope_layers=[1, 0, 1]),
    # sinks
    "flint": MIXED,
    "gpt_oss": MIXED | YARN,
    "granite_swa": MIXED | dict(attention_multiplier=0.25, layer_rope_theta=[1e4, 1e2, 1e4]),
    "granitemoe_swa": MIXED | dict(attention_multiplier=0.25, layer_rope_theta=[1e4, 0, 1e4]),
    "mimo_v2_flash": MIXED | dict(v_head_dim=8),
    # frequencies rescaled
    "apertus": LLAMA3 | dict(hidden_act="silu"),  # its own activation logs a missing kernel
    "llama-dynamic": dict(model_type="llama") | _rope("dynamic", factor=4.0),  # acts past 256
    "llama-linear": dict(model_type="llama") | _rope("linear", factor=4.0),
    "llama-llama3": dict(model_type="llama") | LLAMA3,
    "llama-yarn": dict(model_type="llama") | YARN,
    "ministral3": _rope(
        "yarn", factor=32.0, original_max_position_embeddings=8, llama_4_scaling_beta=0.1
    ),  # and queries scaled by position
    "phi3-longrope": dict(model_type="phi3") | _longrope(64),
}

_MLA = dict(
    num_key_value_heads=4,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
)

_GEMMA4 = dict(
    global_head_dim=32,
    vocab_size_per_layer_input=128,
    hidden_size_per_layer_input=8,
)
_SHARED_KV = dict(
    WINDOW,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
)

UNDECIDED: dict[str, dict] = {
    # one tensor rotated at a time, `apply(x, cos, sin)`; keys shared between layers
    "gemma3n_text": _SHARED_KV | dict(vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, laurel_rank=8),
    "gemma4_text": FULL_LAST | _GEMMA4,
    "gemma4-shared": dict(model_type="gemma4_text") | _SHARED_KV | _GEMMA4,
    # every attention module runs several times a pass, each time with its own cache slot
    "hrm_text": dict(num_hidden_layers=4, num_layers_per_stack=1, H_cycles=1, L_cycles=3, prefix_lm=False),
    # a rotary module inside every attention module
    "moshi": dict(ffn_dim=96),
    # the window is in the mask only: the attention function is not told of it
    "phimoe-window": WINDOW | dict(model_type="phimoe"),
    "qwen2_moe-window": dict(WINDOW, model_type="qwen2_moe", use_sliding_window=True, max_window_layers=1),
}

REFUSED: dict[str, dict] = {
    # self-test: a weighted norm after the rotation; a mask computed from the values
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": dict(moe_topk=2),
    "doge": {},
    # keys or values are changed after the cache update, which our cache does not give back whole
    "diffllama": {},
    "jetmoe": {},
    # no rotary positions: learned, sinusoidal, ALiBi
    "biogpt": {},
    "bloom": {},
    "gpt2": {},
    "mpt": {},
    "opt": dict(ffn_dim=96, word_embed_proj_dim=64),
    # rotary inside attention, without a rotary module
    "codegen": dict(rotary_dim=8),
    "gptj": dict(rotary_dim=8),
    # a rotary module, but no attention interface
    "falcon": {},
    "gpt_neox_japanese": {},
    # complex rotary
    "llama4_text": dict(intermediate_size_mlp=96, num_experts_per_tok=1),
    # multi-head latent attention
    "deepseek_v2": _MLA | dict(first_k_dense_replace=1),
    "deepseek_v3": _MLA | dict(first_k_dense_replace=1, n_group=1, topk_group=1),
    "minicpm3": _MLA,
    # keys selected by a trained indexer
    "minimax_m3_vl_text": dict(
        dense_intermediate_size=64,
        shared_intermediate_size=32,
        rotary_dim=8,
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=4,
        index_topk_blocks=2,
        layer_types=["full_attention", "minimax_m3_sparse", "full_attention"],
    ),
    # recurrent or convolutional layers, alone or beside attention
    "bamba": dict(attn_layer_indices=[1]),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "lfm2": dict(layer_types=["conv", "full_attention", "conv"]),
    "mamba": {},
    "qwen3_next": dict(layer_types=["linear_attention", "full_attention", "linear_attention"]),
    "recurrent_gemma": dict(lru_width=64),
    "rwkv": {},
    # encoder-decoder
    "t5": dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
}

_CLASSES = {"emu3_text_model": Emu3ForCausalLM._from_config}


def build(label: str, overrides: dict) -> PreTrainedModel:
    """Returns the tiny model: float32, eval mode, eager attention, the same for equal arguments."""
    kind = overrides.get("model_type", label)
    cls = CONFIG_MAPPING[kind]
    known = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map)
    tiny = {k: v for k, v in TINY.items() if k in known}
    more = {k: v for k, v in copy.deepcopy(overrides).items() if k != "model_type"}
    config = cls(**tiny | more)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    make = _CLASSES.get(kind, auto.from_config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make(config, dtype=torch.float32, attn_implementation="eager").eval()
        for p in model.parameters():
            noise = 0.2 * torch.randn(p.shape)
            # norms and biases start constant, some of them with two dimensions: keep their level
            p.copy_(p + noise if p.dim() < 2 or p.min() == p.max() else noise)
    return model
