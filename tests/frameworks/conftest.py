"""What the tests of every framework use: a saved corpus, the model slowed down and counted, an event loop watched."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

import pytest

from reattention_core import Engine

Result = TypeVar("Result")


@pytest.fixture
def notes(engine: Engine) -> str:
    """The name of a saved corpus."""
    documents = ["The quick brown fox jumps over the lazy dog. " * 3, "A cache keeps the keys and the values. " * 3]
    engine.ingest(documents, name="notes", progress=False)
    return "notes"


@pytest.fixture
def left_open_here() -> Iterator[None]:
    """Has the memory of a chat or an agent, which leaves a database open, complain in its own test."""
    yield
    gc.collect()


class Steps:
    """Counts the model's forward passes and makes each take `delay` seconds."""

    def __init__(self) -> None:
        self.count, self.delay = 0, 0.0

    def __call__(self, *_: Any) -> None:
        self.count += 1
        time.sleep(self.delay)


@pytest.fixture
def steps(engine: Engine) -> Iterator[Steps]:
    steps = Steps()
    # Reading documents runs no output layer.
    hook = engine.attachment.model.base_model.register_forward_pre_hook(steps)
    yield steps
    hook.remove()


async def watched(call: Awaitable[Result]) -> tuple[Result, int]:
    """The call's result, and how often the event loop got a turn meanwhile, every 5 ms at best."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    try:
        return await call, ticks
    finally:
        ticker.cancel()


async def stopped(steps: Steps) -> bool:
    """Whether the model stops at once: within two tokens of now."""
    now = steps.count
    await asyncio.sleep(10 * steps.delay)
    return steps.count <= now + 2
