"""An engine's numbers for Prometheus (extra `metrics`); looks when it is asked, and knows no server.

from prometheus_client import REGISTRY, start_http_server
from reattention_core.metrics import EngineMetrics

REGISTRY.register(EngineMetrics(engine))
start_http_server(9000)
"""

import weakref
from collections.abc import Iterator

from reattention_core.engine import Engine
from reattention_core.stats import Stats

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("metrics need prometheus-client: pip install 'reattention[metrics]'") from error


class EngineMetrics(Collector):
    """Collects `Engine.stats` as metrics named `reattention_…`. One engine a registry, which does not keep it alive.

    Args:
        engine: whose numbers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)

    def collect(self) -> Iterator[Metric]:
        """The metrics now; none once the engine is gone."""
        engine = self._engine()
        if engine is not None:
            yield from _metrics(engine.stats())


def _metrics(stats: Stats) -> Iterator[Metric]:
    held = GaugeMetricFamily("reattention_bytes", "Memory and disk by what they hold.", labels=["tier", "holds"])
    for tier, contents in stats.bytes.items():
        for what, size in contents.items():
            held.add_metric([tier, what], size)
    yield held
    requests = CounterMetricFamily("reattention_requests", "Prompts by what became of them.", labels=["outcome"])
    for outcome, count in stats.requests.items():
        requests.add_metric([outcome], count)
    yield requests
    tokens = CounterMetricFamily("reattention_tokens", "Tokens read, taken from the cache, written.", labels=["what"])
    for what, count in (
        ("read", stats.tokens_read),
        ("cached", stats.tokens_cached),
        ("written", stats.tokens_written),
    ):
        tokens.add_metric([what], count)
    yield tokens
    prefixes = CounterMetricFamily(
        "reattention_prefix_lookups", "Prompts whose beginning was sought.", labels=["found"]
    )
    prefixes.add_metric(["yes"], stats.prefix_hits)
    prefixes.add_metric(["no"], stats.prefix_misses)
    yield prefixes
    staged = CounterMetricFamily(
        "reattention_staged_pages", "Pages in lower tiers that were read.", labels=["staged_before"]
    )
    staged.add_metric(["yes"], stats.staged_hits)
    staged.add_metric(["no"], stats.staged_misses)
    yield staged
    limits = GaugeMetricFamily("reattention_corpora_bytes_limit", "The most corpora may take, if set.", labels=["tier"])
    for tier, limit in stats.corpora_bytes_limit.items():
        if limit is not None:
            limits.add_metric([tier], limit)
    yield limits
    answered = stats.requests["answered"]
    for name, text, seconds in (
        ("answer", "From the call to the end of an answer.", stats.answer_seconds),
        ("first_token", "From the call to the first piece of an answer.", stats.first_token_seconds),
    ):
        yield SummaryMetricFamily(f"reattention_{name}_seconds", text, count_value=answered, sum_value=seconds)
    for name, text, value in (
        ("prefix_evictions", "What was dropped of prompts' beginnings to make room.", stats.prefix_evictions),
        ("corpora_evictions", "Corpora that went to a lower tier to make room.", stats.corpora_evictions),
        ("refused", "Requests sent away because too many waited.", stats.refused),
        ("waited_seconds", "That all waited for the model.", stats.waited_seconds),
        ("ran_seconds", "That the model was had.", stats.ran_seconds),
    ):
        yield CounterMetricFamily(f"reattention_{name}", text, value=value)
    for name, text, value in (
        ("prefix_bytes_limit", "The most that prompts' beginnings may take.", stats.prefix_bytes_limit),
        ("waiting", "How many wait for the model.", stats.waiting),
        ("waiting_limit", "How many may wait.", stats.waiting_limit),
        ("running", "Whether someone has the model.", int(stats.running)),
    ):
        yield GaugeMetricFamily(f"reattention_{name}", text, value=value)
