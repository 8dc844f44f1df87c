"""The answer's way to the client: header filters, Kong's own headers, body filters, one chunk out for one chunk in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import formatdate

import h11

from kong_plugins.local_gateway.errors import Exit, reason
from kong_plugins.local_gateway.exchange import Exchange
from kong_plugins.local_gateway.exits import from_lua
from kong_plugins.local_gateway.headers import Headers
from kong_plugins.local_gateway.logs import Log
from kong_plugins.local_gateway.lua_host import LuaPluginError
from kong_plugins.local_gateway.server import ClientConnection

SERVER = b"kong/3.9.1"  # the version whose behaviour this is; the log and the start line say that it is not Kong
VIA = b"1.1 " + SERVER
_FIRST = (b"date", b"content-type", b"content-length", b"transfer-encoding", b"connection")
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"proxy-connection", b"upgrade"))
_NO_BODY = (204, 304)


class ResponseCut(Exception):  # noqa: N818 - what the client sees
    """The answer cannot go on: a plugin's filter failed or the lengths do not agree."""


class Response:
    """Sends one answer. Own answers go through :meth:`answer`; an upstream's through head, data and end."""

    def __init__(self, exchange: Exchange, client: ClientConnection, log: Log) -> None:
        self._exchange = exchange
        self._client = client
        self._log = log
        self._filters = exchange.rows.body_filter
        self._has_body = True
        self._discard = False
        self._head_at = 0.0
        self.started = False

    def answer(self, exit_: Exit) -> None:
        """An answer of Kong's or a plugin's own, whole."""
        exchange = self._exchange
        proxied = exchange.latencies.proxy >= 0
        if not proxied:
            exchange.latencies.kong = exchange.elapsed_ms()
        exchange.source = exit_.source
        pairs = [*exchange.early_headers, *exit_.headers]
        body = exit_.body or b""
        if not any(name.lower() == b"content-length" for name, _ in pairs):
            pairs.append((b"Content-Length", str(len(body)).encode()))
        replaced = self._filter_head(exit_.status, pairs)
        if replaced is not None:
            body = replaced
        headers = exchange.response_headers
        if proxied:
            self._add_proxy_headers(headers)
            headers.set(b"Server", SERVER)
        else:
            headers.set(b"X-Kong-Response-Latency", str(exchange.latencies.kong).encode())
            headers.set(b"Server", SERVER)
        headers.set(b"X-Kong-Request-Id", exchange.id.encode())
        headers.set(b"Connection", b"keep-alive" if self._client.keep_alive else b"close")
        # nginx adds its own Date when it writes the head: no log shows it.
        date = [] if headers.get(b"date") is not None else [(b"Date", formatdate(usegmt=True).encode())]
        self._send_head([name for name in _FIRST if name != b"content-length" or exit_.nginx], date)
        if body and self._has_body:
            self.data([body])
        self.end()

    def head(self, status: int, upstream: Sequence[tuple[bytes, bytes]]) -> None:
        """An upstream's head."""
        exchange = self._exchange
        self._head_at = time.time()
        exchange.source = "service"
        pairs = [(name, value) for name, value in upstream if name.lower() not in _HOP_BY_HOP]
        # Content-Type is one slot in nginx: the upstream's goes there, an earlier one of ours does not come beside it.
        sent_types = any(name.lower() == b"content-type" for name, _ in pairs)
        early = [pair for pair in exchange.early_headers if not (sent_types and pair[0].lower() == b"content-type")]
        pairs = early + pairs
        if not any(name.lower() == b"server" for name, _ in pairs):
            pairs.append((b"Server", SERVER))
        replaced = self._filter_head(status, pairs)
        headers = exchange.response_headers
        self._add_proxy_headers(headers)
        headers.set(b"X-Kong-Request-Id", exchange.id.encode())
        headers.set(b"Connection", b"keep-alive" if self._client.keep_alive else b"close")
        bodiless = exchange.status in _NO_BODY or exchange.method == "HEAD"
        if headers.get(b"content-length") is None and not bodiless:
            if exchange.http_version >= 1.1:
                headers.add(b"Transfer-Encoding", b"chunked")
            else:
                headers.set(b"Connection", b"close")
        self._send_head(_FIRST)
        if replaced is not None:
            self.data([replaced])
            self._discard = True

    def data(self, pieces: Sequence[bytes]) -> None:
        """Pieces of the body, each through the body filters and out as one chunk.

        Raises:
            ResponseCut: as said there.
        """
        if self._discard or not self._has_body:
            return
        out: list[bytes] = []
        for piece in pieces:
            filtered = self._filtered(piece, eof=False) if self._filters else piece
            if filtered:
                out.append(filtered)
        self._send(out)

    def end(self) -> None:
        """The end of the body: filters see it, then the client.

        Raises:
            ResponseCut: as said there.
        """
        if self._has_body and self._filters:
            rest = self._filtered(b"", eof=True)
            self._send([rest] if rest else [])
        if self._head_at:
            self._exchange.latencies.receive = int((time.time() - self._head_at) * 1000)
        try:
            self._client.send_end()
        except h11.LocalProtocolError as error:
            raise ResponseCut(f"the body is shorter than its head says: {error}") from error

    def cut_short(self) -> None:
        """The upstream went away: the filters are called once more, with nothing and without an end, as in Kong.

        Raises:
            ResponseCut: as said there.
        """
        if self._has_body and self._filters and not self._discard:
            self._filtered(b"", eof=False)

    def _filtered(self, piece: bytes, eof: bool) -> bytes:
        lua = self._exchange.lua()
        try:
            for plugin in self._filters:
                piece = lua.body_filter(plugin, piece, eof)
        except LuaPluginError as error:
            self._log.write("error", str(error), self._exchange)
            raise ResponseCut("a body filter failed") from error
        return piece

    def _send(self, pieces: Sequence[bytes]) -> None:
        if not pieces:
            return
        try:
            self._client.send_data(pieces)
        except h11.LocalProtocolError as error:
            raise ResponseCut(f"the body is longer than its head says: {error}") from error

    def _filter_head(self, status: int, pairs: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        """Runs the header filters; the body of an answer one of them gave instead."""
        exchange = self._exchange
        exchange.status = status
        exchange.response_headers = Headers(pairs)
        if not (exchange.has_lua or exchange.rows.uses_lua):
            return None
        lua = exchange.lua()
        proxy_ms = exchange.latencies.proxy if exchange.latencies.proxy >= 0 else None
        lua.start_response(
            status, list(pairs), source=exchange.source, upstream_status=exchange.upstream_status, proxy_ms=proxy_ms
        )
        replaced: bytes | None = None
        try:
            for plugin in exchange.rows.header_filter:
                ended = lua.header_filter(plugin)
                if ended is not None:
                    answer = from_lua(ended, exchange)
                    exchange.status, exchange.reason = answer.status, None
                    exchange.response_headers = Headers(lua.response_headers)
                    for name, value in answer.headers:
                        exchange.response_headers.set(name, value)
                    exchange.response_headers.set(b"Content-Length", str(len(answer.body or b"")).encode())
                    replaced = answer.body or b""
                    break
        except LuaPluginError as error:
            self._log.write("error", str(error), exchange)
            raise ResponseCut("a header filter failed") from error
        if replaced is None:
            if lua.response_status != exchange.status:
                exchange.status, exchange.reason = lua.response_status, None
            exchange.response_headers = Headers(lua.response_headers)
        return replaced

    def _add_proxy_headers(self, headers: Headers) -> None:
        latencies = self._exchange.latencies
        headers.set(b"X-Kong-Upstream-Latency", str(latencies.proxy).encode())
        headers.set(b"X-Kong-Proxy-Latency", str(latencies.kong).encode())
        before = headers.get(b"via")
        headers.set(b"Via", before + b", " + VIA if before else VIA)

    def _send_head(self, first: Sequence[bytes], more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        exchange = self._exchange
        pairs = [*more, *exchange.response_headers]
        leading = [pair for name in first for pair in pairs if pair[0].lower() == name]
        following = [pair for pair in pairs if pair[0].lower() not in first]
        self._has_body = exchange.method != "HEAD" and exchange.status not in _NO_BODY
        self.started = True
        try:
            phrase = exchange.reason if exchange.reason is not None else reason(exchange.status).encode()
            self._client.send_head(exchange.status, phrase, leading + following)
        except h11.LocalProtocolError as error:
            raise ResponseCut(f"a header cannot be sent: {error}") from error
