"""What a plugin server tells Prometheus, where ``TOKEN_QUOTA_METRICS_PORT`` asks for it: on 127.0.0.1 only."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.spool import DurableSpool
from kong_plugins.adapters.without_ledger import WithoutLedger
from kong_plugins.application.ports import SpoolUnavailable
from kong_plugins.application.posting import Poster

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = logging.getLogger(__name__)

PORT_ENV = "TOKEN_QUOTA_METRICS_PORT"
PORTS_TRIED = 8  # plugin servers share their environment: each takes the first port that is free, from the given one


@dataclass(frozen=True, slots=True)
class Observed:
    """The way into one ledger."""

    ledger: str
    poster: Poster
    spool: DurableSpool
    without: WithoutLedger | None = None


@dataclass(frozen=True, slots=True)
class MetricsServer:
    port: int
    stop: Callable[[], None]


class PostingMetrics:
    """Reads postings and spool when it is asked, and costs nothing before."""

    def __init__(self, observe: Callable[[], Sequence[Observed]]) -> None:
        self._observe = observe

    def collect(self) -> Iterator[Metric]:
        """Every metric carries ``ledger``, its address without secrets."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["ledger"]
        postings = CounterMetricFamily(
            "token_quota_postings",
            "Settlements and recorded events since the process began, by what became of them.",
            labels=[*labels, "result"],
        )
        depth = GaugeMetricFamily(
            "token_quota_spool_postings",
            "Postings in the spool: waiting in line, deferred after errors of their own, set aside for an operator.",
            labels=[*labels, "state"],
        )
        size = GaugeMetricFamily("token_quota_spool_bytes", "Bytes of all postings in the spool.", labels=labels)
        age = GaugeMetricFamily(
            "token_quota_spool_oldest_seconds", "Age of the first in line; 0 when none waits.", labels=labels
        )
        admissions = CounterMetricFamily(
            "token_quota_admissions",
            "Requests since the process began: admitted by the ledger, by a lease or by nobody (open), denied for a"
            " budget or for too many at a time, refused because the ledger was away (closed).",
            labels=[*labels, "decided"],
        )
        leases = GaugeMetricFamily("token_quota_leases", "Tenants that this process leases budgets for.", labels=labels)
        unregistered = GaugeMetricFamily(
            "token_quota_unregistered", "Admitted requests that the ledger does not know of yet.", labels=labels
        )
        late = CounterMetricFamily(
            "token_quota_registered_late",
            "Requests that ran without the ledger and could be held no more when it was back: billed, charged to no"
            " budget.",
            labels=labels,
        )
        for each in self._observe():
            if each.without is not None:
                for decided, count in each.without.counts.items():
                    admissions.add_metric([each.ledger, decided], count)
                late.add_metric([each.ledger], each.without.registrar.late)
                leases.add_metric([each.ledger], each.without.leases)
                unregistered.add_metric([each.ledger], len(each.without.registrar))
            for result, count in each.poster.counts.items():
                postings.add_metric([each.ledger, result], count)
            sums = each.spool.sums
            for state, count in (("waiting", sums.waiting), ("deferred", sums.deferred), ("set_aside", sums.aside)):
                depth.add_metric([each.ledger, state], count)
            size.add_metric([each.ledger], sums.size)
            try:
                oldest_ms = each.spool.oldest_ms()
            except SpoolUnavailable as error:
                _log.warning("the spool's age cannot be read: %s", error)
                continue
            age.add_metric([each.ledger], 0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000))
        yield from (admissions, leases, unregistered, late, postings, depth, size, age)


def serve_metrics(
    observe: Callable[[], Sequence[Observed]], environ: Mapping[str, str] = os.environ
) -> MetricsServer | None:
    """None where no port is asked for, or none can be had: a gateway does not stop for its metrics."""
    text = environ.get(PORT_ENV)
    if not text:
        return None
    if not text.isdigit() or not 1 <= int(text) <= 65_535 - PORTS_TRIED:
        _log.error("no metrics: %s is %r, which is no port; use 1 to %d", PORT_ENV, text, 65_535 - PORTS_TRIED)
        return None
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry: Any = CollectorRegistry()
    registry.register(PostingMetrics(observe))
    ProcessCollector(registry=registry)
    first = int(text)
    for port in range(first, first + PORTS_TRIED):
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError:
            continue

        def stop(server: Any = server, thread: Any = thread) -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        _log.info("metrics at http://127.0.0.1:%d/metrics", port)
        return MetricsServer(port, stop)
    _log.error("no metrics: ports %d to %d of 127.0.0.1 are in use", first, first + PORTS_TRIED - 1)
    return None
