"""What a plugin server tells of its postings and its spool, on 127.0.0.1 and only where a port is asked for."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest

from kong_plugins.adapters.background import GreenletQueue
from kong_plugins.adapters.ledger import MemoryLedger
from kong_plugins.adapters.plugin_metrics import MetricsServer, Observed, serve_metrics
from kong_plugins.adapters.spool import DurableSpool
from kong_plugins.application.ports import LedgerUnavailable, Recording
from kong_plugins.application.posting import Poster


class _Away(MemoryLedger):
    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        if tenant == "away":
            raise LedgerUnavailable("away")
        return super().record(tenant, event_id, event)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(server: MetricsServer) -> list[str]:
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]


def test_postings_and_spool_are_told(tmp_path: Path) -> None:
    """Posted, repeated, spooled and what waits, by ledger."""
    spool = DurableSpool(tmp_path, "redis://l/0")
    poster = Poster(_Away(lambda: 1_795_000_000_000_000), spool, GreenletQueue("replay"))
    for tenant in ("t", "t", "away"):
        poster.record(Recording(tenant, "e", b"{}"))
    observed = [Observed("redis://l/0", poster, spool)]
    server = serve_metrics(lambda: observed, {"TOKEN_QUOTA_METRICS_PORT": str(min(free_port(), 60_000))})
    assert server is not None
    # The scrape is answered by a thread, where a spool of this thread's loop is not to be asked.
    spool.oldest_ms = lambda: None  # type: ignore[method-assign]
    try:
        lines = scrape(server)
    finally:
        server.stop()
        spool.close()
    for line in (
        'token_quota_postings_total{ledger="redis://l/0",result="posted"} 1.0',
        'token_quota_postings_total{ledger="redis://l/0",result="repeated"} 1.0',
        'token_quota_postings_total{ledger="redis://l/0",result="spooled"} 1.0',
        'token_quota_postings_total{ledger="redis://l/0",result="lost"} 0.0',
        'token_quota_spool_postings{ledger="redis://l/0",state="waiting"} 1.0',
        'token_quota_spool_oldest_seconds{ledger="redis://l/0"} 0.0',
    ):
        assert line in lines


def test_servers_that_share_an_environment_take_a_port_each() -> None:
    """The first that is free, from the one that is given."""
    environ = {"TOKEN_QUOTA_METRICS_PORT": str(min(free_port(), 60_000))}
    one, other = serve_metrics(list, environ), serve_metrics(list, environ)
    assert one is not None
    assert other is not None
    try:
        assert one.port < other.port
    finally:
        one.stop()
        other.stop()


@pytest.mark.parametrize("text", ["", "no", "0", "65535"])
def test_without_a_port_there_are_none(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """And a wrong one is said, but stops no gateway."""
    assert serve_metrics(list, {"TOKEN_QUOTA_METRICS_PORT": text}) is None
    assert [record.levelno for record in caplog.records] == ([logging.ERROR] if text else [])
