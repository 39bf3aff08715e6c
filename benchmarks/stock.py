"""The stock model with everything in its context, timed token by token; knows nothing of the library."""

import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Notes when each token is there; `generate` hands tokens over on the CPU, so the device has finished them."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then every new token."""
        self.ticks.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left."""


@torch.inference_mode()
def full_attention(model: PreTrainedModel, ids: list[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token of a prompt, and for each further one: the second of two runs.

    Torch's flash backend, or the memory-efficient one where flash refuses a call; cuDNN's would plan anew for every length
    of the context.
    """
    other = SDPBackend.EFFICIENT_ATTENTION if model.device.type == "cuda" else SDPBackend.MATH
    backends = [SDPBackend.FLASH_ATTENTION, other]
    prompt = torch.tensor([ids], device=model.device)
    arguments: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    for _ in range(2):
        clock = Clock()
        began = time.perf_counter()
        with sdpa_kernel(backends):
            model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=clock, **arguments)  # type: ignore[operator]
    first, *rest = clock.ticks[1:]
    return first - began, (rest[-1] - first) / len(rest)
