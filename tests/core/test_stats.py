"""What an engine says of itself: bytes counted again by hand, counts after known events, and the same as Prometheus reads it."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reattention_core import Config, Corpus, Engine
from reattention_core.errors import AnswerTimeoutError, CancelledError, InvalidRequestError, QueueFullError
from reattention_core.metrics import EngineMetrics
from tests.core.test_prefix import PAGE_BYTES

DOCUMENTS = [f"The warranty of device {i} lasts {i} years, says its manufacturer. " * 4 for i in range(4)]
TEXT = "The quick brown fox jumps over the lazy dog. " * 9


@pytest.fixture
def small(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[Engine]:
    """Room for ten pages of prompts, and for one who waits."""
    config = Config(cache_dtype="float32", max_new_tokens=4, stop=(), prefix_bytes=10 * PAGE_BYTES, max_waiting=1)
    with Engine(model, tokenizer, config, tmp_path / "store") as engine:
        yield engine


def stored(corpora: list[Corpus]) -> int:
    """Bytes of the corpora's keys and values, each tensor once."""
    tensors = []
    for corpus in corpora:
        runs = getattr(corpus.pages, "runs", None)
        for pages in [corpus.pages] if runs is None else [run.pages for run in runs]:
            tensors += [*pages.keys, *pages.values, pages.filled, pages.first]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def test_bytes_are_those_of_the_tensors_and_files(small: Engine, tmp_path: Path) -> None:
    parameters = sum(p.numel() * 4 for p in small.attachment.model.parameters())
    assert small.stats().bytes == {
        "device": {"weights": parameters, "corpora": 0, "index": 0, "staged": 0, "prefixes": 0},
        "host": {"corpora": 0},
        "disk": {"mapped": 0, "saved": 0},
    }
    one = small.ingest(DOCUMENTS[:2], name="one", progress=False)
    two = small.ingest(DOCUMENTS[2:], progress=False)
    small.generate(TEXT[:150])
    found = small.stats().bytes
    assert found["device"]["corpora"] == stored([one, two]) == one.nbytes + two.nbytes
    assert 0 < found["device"]["prefixes"] == small.prefixes.kept.nbytes <= 10 * PAGE_BYTES
    files = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert found["disk"] == {"mapped": 0, "saved": sum(len(file.read_bytes()) for file in files)}
    del two
    gc.collect()
    assert small.stats().bytes["device"]["corpora"] == one.nbytes


def test_what_corpora_share_is_counted_once(small: Engine) -> None:
    one, two = (small.ingest(documents, progress=False) for documents in (DOCUMENTS[:2], DOCUMENTS[2:]))
    before = small.stats().bytes["device"]["corpora"]
    both = small.join(one, two)
    assert small.stats().bytes["device"]["corpora"] == before == stored([one, two, both])


def test_pages_that_say_they_are_mapped_count_as_disk(small: Engine) -> None:
    small.ingest(DOCUMENTS, name="all", progress=False)
    gc.collect()
    opened = small.open("all")
    opened.pages.mapped = True
    found = small.stats().bytes
    assert found["device"]["corpora"] == 0
    assert found["disk"]["mapped"] == opened.nbytes <= found["disk"]["saved"]


def test_every_outcome_is_counted_and_only_once(small: Engine) -> None:
    corpus = small.ingest(DOCUMENTS, progress=False)
    read = small.stats().tokens_read
    assert read == corpus.n_tokens
    usages = [small.generate(TEXT).usage, small.generate(TEXT).usage, corpus.ask("Why?").usage]
    stats = small.stats()
    assert stats.requests == {"answered": 3, "cancelled": 0, "late": 0, "failed": 0}
    assert stats.tokens_read == read + sum(usage.prompt_tokens for usage in usages)
    assert stats.tokens_cached == sum(usage.cached_tokens for usage in usages) > 0
    assert stats.tokens_written == sum(usage.completion_tokens for usage in usages)
    assert 0 < stats.first_token_seconds < stats.answer_seconds <= sum(usage.seconds for usage in usages)

    stream = corpus.stream("Why?", max_new_tokens=300)
    next(stream)
    stream.close()
    stream = corpus.stream("Why?", max_new_tokens=300)
    next(stream)
    stream.cancel()
    with pytest.raises(CancelledError):
        list(stream)
    with pytest.raises(AnswerTimeoutError):
        corpus.ask("Why?", max_new_tokens=300, timeout=0.01)
    hook = small.attachment.model.register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError):
        corpus.ask("Why?")
    hook.remove()
    with pytest.raises(InvalidRequestError):
        corpus.ask("")  # never a request
    assert small.stats().requests == {"answered": 3, "cancelled": 2, "late": 1, "failed": 1}


def failing(*_: Any) -> None:
    raise RuntimeError("cublas")


def test_an_answer_that_nobody_read_to_its_end_is_counted_as_what_the_model_did(small: Engine) -> None:
    stream = small.stream("fox", max_new_tokens=2)
    next(stream)
    while small.stats().requests["answered"] == 0:
        time.sleep(0.001)
    stream.close()
    assert small.stats().requests["cancelled"] == 0


def test_the_queue_as_it_is_now(small: Engine) -> None:
    with small.busy():
        waiting = threading.Thread(target=small.generate, args=("fox",))
        waiting.start()
        while small.turns.waiting == 0:
            time.sleep(0.001)
        time.sleep(0.1)
        with pytest.raises(QueueFullError):
            small.generate("fox")
        stats = small.stats()
        assert (stats.running, stats.waiting, stats.waiting_limit, stats.refused) == (True, 1, 1, 1)
        assert stats.requests["failed"] == 1
    waiting.join()
    stats = small.stats()
    assert (stats.running, stats.waiting) == (False, 0)
    assert 0.1 <= stats.waited_seconds < stats.ran_seconds + 0.1


def test_hits_and_evictions(small: Engine) -> None:
    for prompt in (TEXT[:200], TEXT[:200], "Something else. " * 20, TEXT[:200]):
        small.generate(prompt)
    stats = small.stats()
    assert (stats.prefix_hits, stats.prefix_misses) == (small.prefixes.hits, small.prefixes.misses)
    assert stats.prefix_hits + stats.prefix_misses == 4
    assert stats.prefix_hits >= 1 and stats.prefix_evictions >= 1
    assert stats.prefix_bytes_limit == 10 * PAGE_BYTES


def test_prometheus_reads_the_same_numbers(small: Engine) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(EngineMetrics(small))
    corpus = small.ingest(DOCUMENTS, progress=False)
    corpus.ask("Why?")
    small.generate(TEXT)
    small.generate(TEXT)
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    samples = {
        " ".join([sample.name, *sorted(sample.labels.values())]): sample.value
        for family in families.values()
        for sample in family.samples
    }
    stats = small.stats()
    for tier, contents in stats.bytes.items():
        for what, size in contents.items():
            assert samples[f"reattention_bytes {' '.join(sorted([tier, what]))}"] == size
    assert samples["reattention_requests_total answered"] == 3
    assert samples["reattention_answer_seconds_sum"] == stats.answer_seconds
    assert samples["reattention_first_token_seconds_count"] == 3
    assert samples["reattention_tokens_total read"] == stats.tokens_read
    assert samples["reattention_prefix_lookups_total yes"] == stats.prefix_hits == 1
    assert samples["reattention_waiting_limit"] == 1
    assert samples["reattention_waited_seconds_total"] == stats.waited_seconds
    assert {family.type for family in families.values()} == {"counter", "gauge", "summary"}
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(EngineMetrics(small))


def test_a_registry_does_not_keep_an_engine_alive(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    engine = Engine(model, tokenizer, Config(), tmp_path)
    registry.register(EngineMetrics(engine))
    assert b"reattention_waiting 0.0" in generate_latest(registry)
    engine.close()
    del engine
    gc.collect()
    assert generate_latest(registry) == b""


def test_looking_while_others_work_disturbs_nobody(small: Engine) -> None:
    corpus = small.ingest(DOCUMENTS, progress=False)
    expected = corpus.ask("Why?").text
    stop, seen = threading.Event(), list[int]()

    def look() -> None:
        while not stop.is_set():
            seen.append(small.stats().requests["answered"])
            small.ingest("A fox.", progress=False) if len(seen) % 50 == 0 else None

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(5):
            assert corpus.ask("Why?").text == expected
    finally:
        stop.set()
        looking.join()
    assert seen == sorted(seen) and len(seen) > 1
    assert torch.isfinite(corpus.pages.keys[0]).all()
