"""What every test may use: a tiny random model with a tokenizer, and an engine on it."""

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton kernels run in its interpreter. Triton reads this as it is imported, and transformers imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Engine
from tests.core.tiny_tokenizers import byte_level_bpe


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(42)


@pytest.fixture(autouse=True)
def no_loop_of_the_thread(request: pytest.FixtureRequest) -> None:
    """LlamaIndex's synchronous calls run in the thread's event loop, which Python would make for them and nobody would close.

    Where a thread has none and makes none, as everywhere from Python 3.14 on, they make one of their own and close it.
    """
    if not inspect.iscoroutinefunction(request.function):
        asyncio.set_event_loop(None)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_bpe()


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


def tiny_model() -> PreTrainedModel:
    """Two layers, four heads over two key-value heads, trained window 512; large weights, so that attention is sharp."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Engine]:
    """An engine on the tiny model with an exact cache, storing in a folder of the test's own."""
    with Engine(model, tokenizer, Config(cache_dtype="float32", max_new_tokens=8, stop=()), tmp_path / "store") as made:
        yield made
