"""What Prometheus reads at /metrics: vLLM's names, so that its dashboards show this server too.

``vllm:`` stands before them on purpose: it is what existing charts, alerts and autoscalers ask for.
What belongs to HTTP, and not to a model, has the usual names of Prometheus.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from hone.engine.request import EngineStats

_TO_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
             10.0, 20.0, 40.0, 80.0, 160.0, 640.0)  # fmt: skip
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
            7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
          120.0, 240.0, 480.0, 960.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Everything that is counted; one registry per app."""

    def __init__(self, stats: Callable[[], EngineStats | None], name: Callable[[], str]) -> None:
        """Count nothing yet.

        Args:
            stats: how the engine stands; None while there is none.
            name: of the model.
        """
        self._name = name
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, name))
        self._success = self._counter(
            "request_success", "Requests that were answered, by the reason of their end.",
            ("finished_reason",),
        )  # fmt: skip
        self._to_first = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _TO_FIRST
        )
        self._between = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an output.", _BETWEEN
        )
        self._whole = self._histogram(
            "e2e_request_latency_seconds", "From a request to its last token.", _WHOLE
        )
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._output = self._histogram("request_generation_tokens", "Tokens of outputs.", _TOKENS)
        self._http = Counter(
            "http_requests", "Answers of the server.", ("handler", "method", "status"),
            registry=self._registry,
        )  # fmt: skip

    def first_token(self, seconds: float) -> None:
        """A request's first token came after ``seconds``."""
        self._to_first.labels(self._name()).observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """``count`` tokens of an output came ``seconds`` after those before them."""
        between = self._between.labels(self._name())
        # Several at once came evenly, as far as anybody can tell.
        for _ in range(count):
            between.observe(seconds / count)

    def finished(self, reasons: list[str], seconds: float, prompt: int, output: int) -> None:
        """A request was answered: why its outputs ended, and how many tokens it had."""
        name = self._name()
        for reason in reasons:
            self._success.labels(name, reason).inc()
        self._whole.labels(name).observe(seconds)
        self._prompt.labels(name).observe(prompt)
        self._output.labels(name).observe(output)

    def answered(self, handler: str, method: str, status: int) -> None:
        """An answer was sent; ``handler`` is the path of a route."""
        self._http.labels(handler, method, str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"vllm:{name}", help_text, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"vllm:{name}", help_text, ("model_name",), buckets=buckets, registry=self._registry
        )


class _EngineCollector(Collector):
    """What the engine counts itself, read when somebody asks."""

    def __init__(self, stats: Callable[[], EngineStats | None], name: Callable[[], str]) -> None:
        self._stats, self._name = stats, name

    def describe(self) -> list[Metric]:
        return []  # nothing is known before there is an engine

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        used = stats.blocks - stats.free_blocks
        gauges = {
            "num_requests_running": ("Sequences that are computed.", stats.running),
            "num_requests_waiting": ("Sequences that wait to be computed.", stats.waiting),
            "kv_cache_usage_perc": (
                "Share of the cache in use, 0 to 1.",
                used / stats.blocks if stats.blocks else 0.0,
            ),
        }
        counters = {
            "prefix_cache_queries": ("Tokens of prompts.", stats.prefix_queries),
            "prefix_cache_hits": ("Those that were found in the cache.", stats.prefix_hits),
            "num_preemptions": ("Sequences that were computed again.", stats.preemptions),
            "prompt_tokens": ("Tokens of prompts that were computed.", stats.prompt_tokens),
            "generation_tokens": ("Tokens that were generated.", stats.generated_tokens),
            "spec_decode_num_draft_tokens": ("Tokens that were guessed.", stats.drafted),
            "spec_decode_num_accepted_tokens": ("Guesses that were right.", stats.accepted),
        }
        for name, (help_text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", help_text, labels=["model_name"])
            gauge.add_metric([self._name()], value)
            yield gauge
        for name, (help_text, value) in counters.items():
            counter = CounterMetricFamily(f"vllm:{name}", help_text, labels=["model_name"])
            counter.add_metric([self._name()], value)
            yield counter
