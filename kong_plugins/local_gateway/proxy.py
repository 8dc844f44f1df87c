"""One request at its upstream: tries, the streamed answer, and the ways it can end early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import h11

from kong_plugins.adapters.deck_entities import Service
from kong_plugins.local_gateway.errors import Exit
from kong_plugins.local_gateway.exchange import Exchange, Try
from kong_plugins.local_gateway.exits import handler_exit
from kong_plugins.local_gateway.headers import Headers, text
from kong_plugins.local_gateway.logs import Log
from kong_plugins.local_gateway.response import SERVER, Response, ResponseCut
from kong_plugins.local_gateway.server import ClientConnection
from kong_plugins.local_gateway.upstream import UpstreamConnection, UpstreamPool

# What nginx's proxy_set_header lines replace, and hop-by-hop headers.
_REPLACED = (
    b"host,connection,keep-alive,proxy-connection,proxy,transfer-encoding,upgrade,te,expect,content-length,via,"
    b"x-forwarded-for,x-forwarded-proto,x-forwarded-host,x-forwarded-port,x-forwarded-path,x-forwarded-prefix,"
    b"x-real-ip,x-kong-request-id"
).split(b",")


class Proxy:
    """One exchange on its way upstream and back: the upstream's sink and the client's flow control."""

    def __init__(
        self,
        exchange: Exchange,
        service: Service,
        client: ClientConnection,
        response: Response,
        *,
        pool: UpstreamPool,
        log: Log,
    ) -> None:
        self._exchange = exchange
        self._service = service
        self._client = client
        self._response = response
        self._pool = pool
        self._log = log
        self._connection: UpstreamConnection | None = None
        self._done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._balanced = time.time()

    async def run(self) -> Exit | None:
        """None when the client has all of its answer that there will ever be; else the error to answer with."""
        exchange = self._exchange
        self._client.flow = self
        exchange.body_read = True
        outcome = "again"
        for attempt in range(self._service.retries + 1):
            last = attempt == self._service.retries
            connection = await self._connect(last)
            if self._left():
                if connection is not None:
                    connection.abandon()
                self._aborted()
                return None
            if connection is None:
                continue
            outcome = await self._exchange_on(connection)
            while outcome == "stale":
                # nginx, too, sends a request once more when a kept connection turns out to be closed.
                fresh = await self._open()
                if self._left():  # nobody will tell us again
                    if fresh is not None:
                        fresh.abandon()
                    outcome = "client gone"
                else:
                    outcome = "refused" if fresh is None else await self._exchange_on(fresh)
            break
        if outcome == "answered":
            return None
        if outcome == "client gone":
            self._aborted()
            return None
        if self._response.started:
            self._client.abort()
            return None
        if exchange.latencies.proxy < 0:
            exchange.latencies.proxy = self._waited_ms()
        status = 504 if exchange.upstream_status and exchange.upstream_status.endswith("504") else 502
        return handler_exit(status, exchange)

    async def _connect(self, last: bool) -> UpstreamConnection | None:
        service = self._service
        start_ns = time.time_ns()
        kept = self._pool.idle(service.host, service.port)
        attempt = Try(service.host, service.port, start_ns, time.time_ns() - start_ns)
        self._exchange.tries.append(attempt)
        if len(self._exchange.tries) == 1:
            self._balanced = time.time()
            self._exchange.latencies.kong = self._exchange.elapsed_ms()
        connection = kept or await self._open()
        if connection is None:
            code = 502 if not self._timed_out else 504
            self._note_status(str(code))
            attempt.failed_code = code if code == 502 or not last else None
            self._exchange.latencies.proxy = self._waited_ms()
        else:
            attempt.ip = str(connection.peer[0])
        return connection

    _timed_out = False

    async def _open(self) -> UpstreamConnection | None:
        service = self._service
        try:
            return await self._pool.connect(
                service.host, service.port, service.connect_timeout / 1000, service.protocol == "https"
            )
        except TimeoutError:
            self._timed_out = True
        except OSError as error:
            self._timed_out = False
            self._log.write("error", f"connect() to {service.host}:{service.port} failed ({error})", self._exchange)
        return None

    async def _exchange_on(self, connection: UpstreamConnection) -> str:
        exchange = self._exchange
        self._connection = connection
        self._done = asyncio.get_running_loop().create_future()
        query = exchange.query
        target = exchange.upstream_path + (b"?" + query if query or exchange.target.endswith(b"?") else b"")
        reused = connection.used
        try:
            connection.begin(
                method=exchange.method.encode("latin-1"),
                target=target,
                headers=upstream_headers(exchange, self._service),
                body=exchange.body,
                sink=self,
                timeout_s=self._service.read_timeout / 1000,
            )
        except h11.LocalProtocolError as error:
            self._log.write("error", f"the upstream request cannot be sent: {error}", exchange)
            connection.abandon()
            self._note_status("502")
            return "failed"
        outcome = await self._done
        self._connection = None
        if outcome == "closed" and reused and not self._response.started:
            return "stale"
        if outcome in ("closed", "timed out") and not self._response.started:
            self._note_status("504" if outcome == "timed out" else "502")
            exchange.latencies.proxy = self._waited_ms()
        return outcome

    # The upstream's side

    def head(self, status: int, reason: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._exchange.latencies.proxy = self._waited_ms()
        self._exchange.reason = reason
        self._note_status(str(status))
        self._guarded(lambda: self._response.head(status, headers))

    def data(self, pieces: list[bytes]) -> None:
        if not self._done.done():
            try:
                self._response.data(pieces)
            except ResponseCut as cut:
                self._cut(cut)

    def end(self) -> None:
        self._connection = (
            None  # in the pool by now, or another request's: a client that leaves is none of its business
        )
        if not self._done.done():
            self._guarded(self._response.end)
        self._finish("answered")

    def failed(self, timed_out: bool) -> None:
        if self._response.started:
            what = "timed out" if timed_out else "prematurely closed connection"
            self._log.write("error", f"upstream {what} while reading upstream", self._exchange)
            self._guarded(self._response.cut_short)
        self._finish("timed out" if timed_out else "closed")

    # The client's side

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def client_gone(self) -> None:
        if self._connection is not None:
            self._connection.abandon()
        self._finish("client gone")

    def _guarded(self, step: object) -> None:
        try:
            step()  # type: ignore[operator]
        except ResponseCut as cut:
            self._cut(cut)

    def _cut(self, cut: ResponseCut) -> None:
        self._log.write("error", f"answer cut short: {cut}", self._exchange)
        if self._connection is not None:
            self._connection.abandon()
        self._response.started = True
        self._finish("cut")

    def _left(self) -> bool:
        return self._client.gone

    def _finish(self, outcome: str) -> None:
        if not self._done.done():
            self._done.set_result(outcome)

    def _aborted(self) -> None:
        exchange = self._exchange
        exchange.source = "service"
        if not self._response.started:
            exchange.status = 499
            exchange.upstream_status = exchange.upstream_status or "-"
            exchange.response_headers = Headers([(b"Connection", b"close")])
            exchange.latencies.proxy = self._waited_ms()
        self._log.write("info", "client prematurely closed connection", exchange)

    def _waited_ms(self) -> int:
        return int((time.time() - self._balanced) * 1000)

    def _note_status(self, status: str) -> None:
        before = self._exchange.upstream_status
        self._exchange.upstream_status = f"{before}, {status}" if before else status


def upstream_headers(exchange: Exchange, service: Service) -> list[tuple[bytes, bytes]]:
    """The request's headers as nginx and Kong send them: theirs first, then the client's that are left."""
    headers = exchange.headers
    dropped = set(_REPLACED)
    connection = text(headers.get(b"connection") or b"").lower()
    dropped |= {name.strip().encode() for name in connection.split(",")} - {b"", b"close"}
    default = 443 if service.protocol == "https" else 80
    host = service.host if service.port == default else f"{service.host}:{service.port}"
    if exchange.route is not None and exchange.route.preserve_host:
        host = text(headers.get(b"host") or exchange.host.encode())
    via = (b"%g " % exchange.http_version) + SERVER
    before = headers.get(b"via")
    forwarded = headers.get(b"x-forwarded-for")
    address = exchange.client[0].encode()
    pairs: list[tuple[bytes, bytes]] = []
    if b"trailers" in (headers.get(b"te") or b"").split(b","):
        pairs.append((b"TE", b"trailers"))
    pairs += [
        (b"Via", before + b", " + via if before else via),
        (b"Host", host.encode("idna" if not host.isascii() else "ascii")),
        (b"Connection", b"keep-alive"),
        (b"X-Forwarded-For", forwarded + b", " + address if forwarded else address),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", exchange.host.encode("latin-1", "replace")),
        (b"X-Forwarded-Port", str(exchange.server_port).encode()),
        (b"X-Forwarded-Path", exchange.raw_path),
    ]
    prefix = exchange.match.prefix if exchange.match else None
    if prefix and prefix != b"/":
        pairs.append((b"X-Forwarded-Prefix", prefix))
    pairs += [(b"X-Real-IP", address), (b"X-Kong-Request-Id", exchange.id.encode())]
    if exchange.body or headers.get(b"content-length") is not None:
        pairs.append((b"Content-Length", str(len(exchange.body)).encode()))
    pairs += [(name, value) for name, value in headers if name.lower() not in dropped]
    return pairs
