"""What the collector tells Prometheus. Labels are sinks and reasons, never tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from kong_plugins.adapters.outbox import SinkStatus
from kong_plugins.application.deliver import Progress, State

PREFIX = "token_quota_collector"
BATCH_BUCKETS = (1, 10, 50, 100, 500, 1000, 2000, 5000, 10000)
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_COUNTERS: tuple[tuple[str, str, Callable[[Progress], int]], ...] = (
    ("read", "Events taken from the outbox, again or for the first time", lambda of: of.read),
    ("redelivered", "Events taken that somebody had taken before", lambda of: of.redelivered),
    ("written", "Events that the sink has confirmed", lambda of: of.written),
    ("acknowledged", "Events that the outbox knows to be written", lambda of: of.acknowledged),
    ("rejected", "Events that the sink will never take, moved to the dead letters", lambda of: of.rejected),
)
_GAUGES: tuple[tuple[str, str, Callable[[SinkStatus], float]], ...] = (
    ("lag_events", "Events that the sink has not acknowledged", lambda of: of.behind),
    ("pending_events", "Of these, handed to a collector", lambda of: of.pending),
    ("oldest_seconds", "Age of the oldest event that the sink has not acknowledged", lambda of: of.oldest_s or 0.0),
    ("dead_letters", "Events in the sink's dead letters", lambda of: of.dead),
    ("unattended", "1: no collector works for it, and the outbox keeps all it has not had", lambda of: not of.attended),
)


class Metrics:
    """One process's. ``status`` gives what the ledger last said of all sinks."""

    def __init__(self, progress: Mapping[str, Progress], status: Callable[[], Sequence[SinkStatus]]) -> None:
        self._progress = progress
        self._status = status
        self._registry = CollectorRegistry()
        self._batch = Histogram(
            f"{PREFIX}_batch_events", "Events in one write", ["sink"], buckets=BATCH_BUCKETS, registry=self._registry
        )
        self._seconds = Histogram(
            f"{PREFIX}_write_seconds", "Time of one write", ["sink"], buckets=SECONDS_BUCKETS, registry=self._registry
        )
        self._posted = PrometheusCounter(
            f"{PREFIX}_posted",
            "Posted records and events by what became of them",
            ["path", "what"],
            registry=self._registry,
        )
        self._trimmed = PrometheusCounter(
            f"{PREFIX}_trimmed_events", "Events removed from the outbox, which every sink has", registry=self._registry
        )
        self._failures = PrometheusCounter(
            f"{PREFIX}_job_failures", "Periodic jobs that failed", ["job"], registry=self._registry
        )
        self._registry.register(self)

    def observe_write(self, sink: str, entries: int, seconds: float) -> None:
        self._batch.labels(sink).observe(entries)
        self._seconds.labels(sink).observe(seconds)

    def count_posted(self, path: str, counts: Counter[str]) -> None:
        for what, number in counts.items():
            self._posted.labels(path, str(what)).inc(number)

    def count_trimmed(self, entries: int) -> None:
        self._trimmed.inc(entries)

    def count_failure(self, job: str) -> None:
        self._failures.labels(job).inc()

    def page(self) -> tuple[bytes, str]:
        """The page and its content type."""
        encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, about, value in _COUNTERS:
            counter = CounterMetricFamily(f"{PREFIX}_events_{name}", about, labels=["sink"])
            for sink, progress in self._progress.items():
                counter.add_metric([sink], value(progress))
            yield counter
        failures = CounterMetricFamily(f"{PREFIX}_write_failures", "Writes that did not succeed", labels=["sink"])
        up = GaugeMetricFamily(f"{PREFIX}_sink_up", "1: the last write succeeded", labels=["sink"])
        for sink, progress in self._progress.items():
            failures.add_metric([sink], progress.failures)
            up.add_metric([sink], 1.0 if progress.state is State.UP else 0.0)
        yield failures
        yield up
        status = self._status()
        for name, about, reading in _GAUGES:
            gauge = GaugeMetricFamily(f"{PREFIX}_sink_{name}", about, labels=["sink"])
            for each in status:
                gauge.add_metric([each.sink], reading(each))
            yield gauge
