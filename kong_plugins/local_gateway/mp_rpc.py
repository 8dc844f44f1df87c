"""The client half of Kong's MsgPack:1 plugin protocol, with what Kong's own does on every failure.

One frame in flight per connection; connections come from a LIFO pool per socket, so one event may hop between them.
A call ends in one of three ways: a result, :class:`RpcFailed` (Kong logs it and goes on without the plugin) or
:class:`RpcBroken` (Kong's Lua code throws: the client gets a 500).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import msgpack

REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2
READ_TIMEOUT_S = 60.0  # nginx's lua_socket_read_timeout; it is the time between two reads
IDLE_S = 60.0  # nginx's lua_socket_keepalive_timeout


class RpcFailed(Exception):  # noqa: N818 - Kong's word for it: nil, err
    """The call gave no result: no server, no answer in time, or the server's own error text."""


class RpcBroken(Exception):  # noqa: N818 - as above
    """The answer cannot be used at all: wrong id or type, garbage, half a frame, an error that is no text."""


class Binary(bytes):
    """Bytes that go out as MessagePack bin; any other string goes as Kong's packer writes it (never str8)."""

    __slots__ = ()


class SocketPool:
    """Connections to plugin servers by socket path, last one back first out. What nobody needs for ``IDLE_S`` goes."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Connection]] = {}

    async def take(self, path: str) -> _Connection:
        """An idle connection or a new one.

        Raises:
            OSError: the socket is missing or nobody listens.
        """
        idle = self._idle.get(path)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                connection.idle = False
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(_Connection, path)
        return connection

    def give_back(self, path: str, connection: _Connection) -> None:
        idle, now = self._idle.setdefault(path, []), time.monotonic()
        while idle and (idle[0].closed or idle[0].idle_since + IDLE_S <= now):
            idle.pop(0).close()
        if not connection.closed:
            connection.idle, connection.idle_since = True, now
            idle.append(connection)

    def close(self) -> None:
        """Closes idle connections, as Kong does when it stops: no CloseInstance."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.closed = False
        self.idle = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._data: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self.close()  # nginx closes a pooled connection that turns readable: nobody asked for this
            return
        self._data.append(data)
        self._wake()

    def eof_received(self) -> None:
        self.closed = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed = True
        self._wake()

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def read(self, timeout_s: float) -> bytes | None:
        """What has come since the last read; None when the other side closed or nothing came in time."""
        if not self._data and not self.closed:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if not self._data:
            return None
        data, self._data = b"".join(self._data), []
        return data

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RpcClient:
    """One plugin's calls. ``on_pid`` hears ``serverPid`` notifications; ids count from 1 over all connections."""

    def __init__(
        self, pool: SocketPool, path: str, on_pid: Callable[[int], None], read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self._pool = pool
        self._path = path
        self._on_pid = on_pid
        self._read_timeout_s = read_timeout_s
        self._last_id = 0

    async def call(self, method: object, argument: object) -> Any:
        """One request and its result (None is a result).

        Raises:
            RpcFailed: no server, no answer, or an error text.
            RpcBroken: the answer cannot be used.
        """
        self._last_id += 1
        message_id = self._last_id
        try:
            connection = await self._pool.take(self._path)
        except OSError as error:
            raise RpcFailed(f"trying to connect: {(error.strerror or str(error)).lower()}") from error
        try:
            connection.write(pack_request(message_id, method, argument))
            answer = await self._answer(connection, message_id)
        except RpcFailed:
            self._pool.give_back(self._path, connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._pool.give_back(self._path, connection)
        refusal, result = answer
        if isinstance(refusal, str):
            raise RpcFailed(refusal)
        if refusal is not None:
            raise RpcBroken(f"the plugin server's error is no text but {type(refusal).__name__}")
        return result

    async def _answer(self, connection: _Connection, message_id: int) -> tuple[object, object]:
        # A new unpacker for every call: bytes after the answer are dropped, as Kong drops them.
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")
        fed = 0
        while True:
            data = await connection.read(self._read_timeout_s)
            if data is None:
                if fed > unpacker.tell():
                    raise RpcBroken("half an answer")
                raise RpcFailed("no data")
            fed += len(data)
            unpacker.feed(data)
            try:
                for message in unpacker:
                    if not isinstance(message, list) or not message:
                        raise RpcBroken(f"the answer is no array: {str(message)[:40]}")
                    if message[0] == NOTIFICATION:
                        self._notified(message)
                        continue
                    if message[0] != RESPONSE:
                        raise RpcBroken("RPC response expected from Go plugin server")
                    if message[1:2] != [message_id]:
                        raise RpcBroken("unexpected RPC response ID from Go plugin server")
                    refusal, result, *_ = [*message[2:], None, None]
                    return refusal, result
            except (msgpack.UnpackException, ValueError) as error:
                raise RpcBroken(f"the answer is no MessagePack: {error}") from error

    def _notified(self, message: list[Any]) -> None:
        if message[1:2] == ["serverPid"] and len(message) > 2:
            try:
                self._on_pid(int(message[2]))
            except (TypeError, ValueError) as error:
                raise RpcBroken("serverPid is no number") from error


_PACKER = msgpack.Packer(use_bin_type=False, unicode_errors="surrogateescape")


def pack_request(message_id: int, method: object, argument: object) -> bytes:
    """``[0, id, method, [argument]]`` in Kong's packing: str as fixstr, str16 or str32, :class:`Binary` as bin."""
    if isinstance(argument, dict) and isinstance(argument.get("Data"), Binary):
        data: Binary = argument["Data"]
        length = len(data)
        if length < 1 << 8:
            head = b"\xc4" + length.to_bytes(1, "big")
        elif length < 1 << 16:
            head = b"\xc5" + length.to_bytes(2, "big")
        else:
            head = b"\xc6" + length.to_bytes(4, "big")
        start = _PACKER.pack([REQUEST, message_id, method])[1:]
        rest = _PACKER.pack("EventId") + _PACKER.pack(argument["EventId"]) + _PACKER.pack("Data")
        return b"".join((b"\x94", start, b"\x91\x82", rest, head, data))
    return cast(bytes, _PACKER.pack([REQUEST, message_id, method, [argument]]))
