"""One request at its upstream: what a client that leaves may end, and what not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from kong_plugins.local_gateway.proxy import Proxy


class _Upstream:
    """A connection that answers at once, as one does whose answer came in one piece."""

    used = True
    peer = ("127.0.0.1", 1)

    def __init__(self) -> None:
        self.sink: Any = None
        self.abandoned = False

    def begin(self, *, sink: Any, **_: object) -> None:
        self.sink = sink

    def abandon(self) -> None:
        self.abandoned = True


def proxied(upstream: _Upstream) -> tuple[Proxy, asyncio.Task[Any]]:
    latencies = SimpleNamespace(proxy=-1, kong=-1)
    exchange: Any = SimpleNamespace(body=b"", query=b"", target=b"/", method="POST", upstream_path=b"/", tries=[])
    vars(exchange).update(upstream_status=None, headers=None, elapsed_ms=lambda: 0, latencies=latencies)
    service: Any = SimpleNamespace(host="h", port=1, retries=0, read_timeout=1000, connect_timeout=1000)
    response: Any = SimpleNamespace(started=False, head=lambda *_: None, end=lambda: None)
    client: Any = SimpleNamespace(gone=False, flow=None)
    pool: Any = SimpleNamespace(idle=lambda *_: upstream)
    log: Any = SimpleNamespace(write=lambda *_: None)
    proxy = Proxy(exchange, service, client, response, pool=pool, log=log)
    return proxy, asyncio.ensure_future(proxy.run())


def test_a_client_that_leaves_behind_its_answer_ends_nobody_elses(monkeypatch: Any) -> None:
    """The connection is back in the pool when the last byte is passed on, and may serve another: it lost its answer."""
    monkeypatch.setattr("kong_plugins.local_gateway.proxy.upstream_headers", lambda *_: [])

    async def script() -> None:
        upstream = _Upstream()
        proxy, running = proxied(upstream)
        await asyncio.sleep(0)
        upstream.sink.end()
        proxy.client_gone()  # before the proxy's own task is on again
        assert await running is None
        assert not upstream.abandoned

    asyncio.run(script())


def test_a_client_that_leaves_during_its_answer_ends_that(monkeypatch: Any) -> None:
    monkeypatch.setattr("kong_plugins.local_gateway.proxy.upstream_headers", lambda *_: [])

    async def script() -> None:
        upstream = _Upstream()
        proxy, running = proxied(upstream)
        await asyncio.sleep(0)
        proxy._response.started = True  # type: ignore[misc]
        proxy.client_gone()
        assert await running is None
        assert upstream.abandoned

    asyncio.run(script())
