"""What Prometheus reads: the recommender's statistics and the HTTP side's own."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpr_rl.decoding import Recommender

_OUTCOMES = ("accepted", "answered", "failed", "cancelled", "refused", "hits")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class RecommenderCollector(Collector):
    """Reads `Recommender.stats` whenever it is asked."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the statistics of this moment."""
        stats = self._recommender.stats()
        requests = CounterMetricFamily(
            "gpr_rl_requests",
            "Requests by what became of them; hits are answered ones.",
            None,
            ["outcome"],
        )
        for name in _OUTCOMES:
            requests.add_metric([name], getattr(stats, name))
        yield requests
        latency = GaugeMetricFamily(
            "gpr_rl_latency_seconds",
            "From submission to answer, over the latest answers.",
            labels=["quantile"],
        )
        for quantile, value in (
            ("0.5", stats.p50_ms),
            ("0.95", stats.p95_ms),
            ("0.99", stats.p99_ms),
        ):
            latency.add_metric([quantile], value / 1_000.0)
        yield latency
        for name, about, value in (
            ("queue_length", "Requests that wait for a batch.", stats.queue_length),
            ("beam_width", "Width of the beam as the queue is now.", stats.width),
            ("mean_beam_width", "Over the requests of the latest batches.", stats.mean_width),
            ("mean_batch_size", "Over the latest batches.", stats.mean_batch),
            ("cache_hit_ratio", "Hits among accepted requests.", stats.hit_rate),
            ("catalogue_version", "Of the catalogue of ads.", self._recommender.version),
        ):
            yield GaugeMetricFamily(f"gpr_rl_{name}", about, value)


class HttpMetrics:
    """A registry of its own, with the recommender's numbers, responses and their times."""

    def __init__(self, recommender: Recommender) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(RecommenderCollector(recommender))
        self._responses = Counter(
            "gpr_rl_http_responses", "Responses.", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "gpr_rl_http_seconds",
            "From a request's head to its response's.",
            ["path"],
            registry=self.registry,
            buckets=_SECONDS,
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._responses.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
