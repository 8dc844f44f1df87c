"""The client's side: HTTP/1.1 connections, one request at a time, gone at once when the client is gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import h11

from kong_plugins.local_gateway.request_head import HEAD_BYTES_MAX, head_problem, plain_head

BODY_BYTES_MAX = 128 * 1024 * 1024  # nginx would spool to disk without end; a development gateway should not
PIPELINED_BYTES_MAX = 256 * 1024


@dataclass(slots=True)
class Received:
    """A request as it came. ``problem``: the status nginx refuses it with (494 is its word for too large a head)."""

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    http_version: float
    body: bytes = b""
    head_size: int = 0
    size: int = 0
    problem: int | None = None
    parsed: bool = True  # False: its head was refused, nothing in it counts


class Handler(Protocol):
    """Answers requests; started as one task per request."""

    async def handle(self, received: Received, connection: ClientConnection) -> None: ...

    def opened(self, connection: ClientConnection) -> None: ...

    def closed(self, connection: ClientConnection) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client. The handler answers with :meth:`send_head`, :meth:`send_data` and :meth:`send_end`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX * 2)
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._waiting_for_head = True
        self._request: Received | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._can_write = True
        self._closing = False
        self._unparsed = False  # h11 never saw the request, so it has no cycle to answer in
        self.gone = False
        self.flow: FlowControl | None = None
        self.client: tuple[str, int] = ("", 0)
        self.server_port = 0
        self.bytes_sent = 0

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = tuple((transport.get_extra_info("peername") or ("127.0.0.1", 0))[:2])
        self.server_port = int((transport.get_extra_info("sockname") or ("", 0))[1])
        self._handler.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiting_for_head:
            self._head += data
            if self._task is not None:
                if len(self._head) > PIPELINED_BYTES_MAX:
                    self.close()  # a client that sends on and on while it waits for an answer
                return
            self._try_head()
        elif self._request is not None:
            self._request.size += len(data)
            self._read_body(data)

    def eof_received(self) -> bool:
        self._client_gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._client_gone()
        self._handler.closed(self)

    def pause_writing(self) -> None:
        self._can_write = False
        if self.flow is not None:
            self.flow.pause()

    def resume_writing(self) -> None:
        self._can_write = True
        if self.flow is not None:
            self.flow.resume()

    # The request

    def _try_head(self) -> None:
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= HEAD_BYTES_MAX:
            if head_problem(self._head, complete=False) is None:
                return
            end = len(self._head) - 4
        head, rest = self._head[: end + 4], self._head[end + 4 :]
        self._head, self._waiting_for_head = b"", False
        problem = head_problem(head, complete=True) if end >= 0 else 494
        if problem is None:
            try:
                self._http.receive_data(plain_head(head))
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                problem = 494 if error.error_status_hint == 431 else 400
            else:
                assert isinstance(event, h11.Request)
                version = float(event.http_version)
                pairs = event.headers.raw_items()
                self._request = Received(event.method.decode(), event.target, pairs, version)
                self._request.head_size, self._request.size = len(head), len(head) + len(rest)
                if self._http.they_are_waiting_for_100_continue:
                    self._write(
                        self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                    )
                self._read_body(rest)
                return
        self._request = _unreadable(head, problem)
        self._closing = self._unparsed = True
        self._start()

    def _read_body(self, data: bytes) -> None:
        assert self._request is not None
        try:
            if data:
                self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    self._body_bytes += len(event.data)
                    if self._body_bytes > BODY_BYTES_MAX:
                        self._request.problem = 413
                        break
                    self._body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
        except h11.RemoteProtocolError:
            self._request.problem = 400
        if self._request.problem is not None:
            self._closing = True
        else:
            extra, _ = self._http.trailing_data
            self._head, self._request.size = extra, self._request.size - len(extra)
        self._request.body = b"".join(self._body)
        self._body, self._body_bytes, self._waiting_for_head = [], 0, True
        self._start()

    def _start(self) -> None:
        assert self._request is not None
        request, self._request = self._request, None
        self._waiting_for_head = True
        self.bytes_sent = 0
        self._task = asyncio.get_running_loop().create_task(self._handler.handle(request, self))
        self._task.add_done_callback(self._answered)

    # The answer

    @property
    def keep_alive(self) -> bool:
        """Whether this connection takes another request after the answer."""
        return not self._closing and self._http.our_state is not h11.MUST_CLOSE and not self._http_says_close()

    def _http_says_close(self) -> bool:
        return self._http.their_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)

    def send_head(self, status: int, reason: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The answer's head, headers in this order.

        Raises:
            h11.LocalProtocolError: a header that cannot stand in a head.
        """
        if not self._unparsed:
            # For its checks and its state only: its bytes would have `Connection` moved to the end.
            self._http.send(h11.Response(status_code=status, headers=list(headers), reason=reason))
        lines = [b"HTTP/1.1 %d %s" % (status, reason), *(name + b": " + value for name, value in headers)]
        self._write(b"\r\n".join(lines) + b"\r\n\r\n")

    def send_data(self, pieces: Sequence[bytes]) -> None:
        """Pieces of the body, each one a chunk of its own where the answer is chunked."""
        if self._unparsed:
            self._write(b"".join(pieces))
            return
        framed = [self._http.send(h11.Data(data=piece)) or b"" for piece in pieces]
        self._write(framed[0] if len(framed) == 1 else b"".join(framed))

    def send_end(self) -> None:
        if not self._unparsed:
            self._write(self._http.send(h11.EndOfMessage()))

    def close(self) -> None:
        """After what has been written."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Now: the client sees an answer cut short."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def busy(self) -> bool:
        return self._task is not None

    @property
    def can_write(self) -> bool:
        return self._can_write

    def stop_accepting(self) -> None:
        """No further request on this connection; one that runs may end."""
        self._closing = True
        if not self.busy:
            self.close()

    def _write(self, data: bytes | None) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self.bytes_sent += len(data)
            self._transport.write(data)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self.flow = None
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "request task failed", "exception": task.exception(), "task": task}
            )
            self.abort()
            return
        if self.gone:
            return
        if not self.keep_alive or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self.close()
            return
        self._restart()

    def _restart(self) -> None:
        # A new parser instead of start_next_cycle: bytes that came early are ours, in self._head.
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX * 2)
        if self._head:
            self._try_head()

    def _client_gone(self) -> None:
        if self.gone:
            return
        self.gone = True
        if self._task is not None:
            # The access phase goes on to its end, as in nginx: what it held for the request, the log phase settles.
            if self.flow is not None:
                self.flow.client_gone()
        elif self._transport is not None:
            self._transport.close()


class FlowControl(Protocol):
    """Who feeds this client: told to wait when the client reads slowly, and when it is gone."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def client_gone(self) -> None: ...


def _unreadable(head: bytes, problem: int) -> Received:
    line, _, rest = head.partition(b"\r\n")
    words = line.split(b" ")
    pairs = [
        (name.strip(), value.strip())
        for name, colon, value in (entry.partition(b":") for entry in rest.split(b"\r\n"))
        if colon
    ]
    parsed = len(words) == 3
    method = words[0].decode("latin-1") if parsed else ""
    target = words[1] if parsed else b"/"
    return Received(
        method, target, pairs if parsed else [], 1.1, head_size=len(head), size=len(head), problem=problem, parsed=False
    )
