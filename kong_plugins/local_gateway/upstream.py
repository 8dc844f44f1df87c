"""HTTP/1.1 to the upstreams: kept-alive connections that hand every piece of an answer on as it is read."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Protocol, cast

import h11

IDLE_S = 60.0  # nginx's upstream_keepalive_idle_timeout
IDLE_MAX = 512  # Kong's upstream_keepalive_pool_size
READ_BYTES = 65536


class Sink(Protocol):
    """Where an answer goes. Calls come in order: head, data…, then end; or failed at any time, after which nothing."""

    def head(self, status: int, reason: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None: ...

    def data(self, pieces: list[bytes]) -> None:
        """All pieces of the body that one read brought, each as the upstream framed it."""

    def end(self) -> None: ...

    def failed(self, timed_out: bool) -> None:
        """The upstream closed, sent something that is no HTTP, or was silent too long."""


class UpstreamConnection(asyncio.Protocol):
    """One connection; :meth:`begin` starts an exchange on it."""

    def __init__(self, pool: UpstreamPool, key: tuple[str, int]) -> None:
        self._pool = pool
        self._key = key
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._timeout_s = 0.0
        self.used = False  # has served an exchange before: it may be closed under our hands
        self.peer = key
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = (transport.get_extra_info("peername") or self._key)[:2]

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def begin(
        self,
        *,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        sink: Sink,
        timeout_s: float,
    ) -> None:
        """Sends a request; ``timeout_s`` is the longest silence between two reads of the answer."""
        assert self._transport is not None
        self._sink, self._timeout_s, self._heard = sink, timeout_s, time.monotonic()
        # For its checks and its state only: its bytes would have `Host` moved to the front.
        self._http.send(h11.Request(method=method, target=target, headers=list(headers)))
        lines = [method + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
        parts: list[bytes | None] = [b"\r\n".join(lines) + b"\r\n\r\n"]
        if body:
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(part for part in parts if part))
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._check_silence)

    def abandon(self) -> None:
        """Nobody wants the answer any more: the upstream sees its connection closed at once."""
        self._sink = None
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._heard = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        self._feed(data)

    def eof_received(self) -> None:
        self._feed(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fail(timed_out=False)

    def _feed(self, data: bytes) -> None:
        if self._sink is None:
            if self._transport is not None:
                self._transport.close()
            return
        pieces: list[bytes] = []
        ended = False
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    self._sink.head(event.status_code, bytes(event.reason), event.headers.raw_items())
                elif isinstance(event, h11.EndOfMessage):
                    ended = True
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    break
        except h11.RemoteProtocolError:
            self._pass_on(pieces)
            self._fail(timed_out=False)
            return
        self._pass_on(pieces)
        if ended:
            self._finish()

    def _pass_on(self, pieces: list[bytes]) -> None:
        if pieces and self._sink is not None:
            self._sink.data(pieces)

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        self._stop_timer()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self.closed:
            self._http.start_next_cycle()
            self.used = True
            self._pool.give_back(self._key, self)
        elif self._transport is not None:
            self._transport.close()
        if sink is not None:
            sink.end()

    def _fail(self, timed_out: bool) -> None:
        sink, self._sink = self._sink, None
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
        if sink is not None:
            sink.failed(timed_out)

    def _check_silence(self) -> None:
        # One timer per answer, not per chunk: when it fires it looks how long the silence has been.
        left = self._heard + self._timeout_s - time.monotonic()
        if left <= 0:
            self._fail(timed_out=True)
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._check_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UpstreamPool:
    """Idle connections by host and port, last one back first out."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[UpstreamConnection]] = {}

    def idle(self, host: str, port: int) -> UpstreamConnection | None:
        """A connection that is open as far as we know."""
        waiting = self._idle.get((host, port))
        while waiting:
            connection = waiting.pop()
            if not connection.closed and time.monotonic() - connection.idle_since < IDLE_S:
                return connection
            connection.abandon()
        return None

    async def connect(self, host: str, port: int, timeout_s: float, tls: bool) -> UpstreamConnection:
        """A new connection.

        Raises:
            OSError: refused or unreachable.
            TimeoutError: not connected in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(self, (host, port)), host, port, ssl=tls or None
            )
        return connection

    def give_back(self, key: tuple[str, int], connection: UpstreamConnection) -> None:
        waiting, now = self._idle.setdefault(key, []), time.monotonic()
        while waiting and (waiting[0].closed or waiting[0].idle_since + IDLE_S <= now):
            waiting.pop(0).abandon()
        connection.idle_since = now
        if len(waiting) < IDLE_MAX:
            waiting.append(connection)
        else:
            connection.abandon()

    def close(self) -> None:
        for waiting in self._idle.values():
            for connection in waiting:
                connection.abandon()
        self._idle.clear()
