"""Kong's side of MsgPack:1 as its ``mp_rpc.lua`` speaks it, blocking: a connection for each call from a LIFO pool, one
frame in flight on it, put back also after a read timeout; errors as Kong tells them apart."""

from __future__ import annotations

import itertools
import json
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

TERMINAL = ("kong.response.exit", "kong.response.error")


class ClosedWithoutAnswer(Exception):  # noqa: N818
    """Kong: "no data": the request goes on without the plugin."""


class NotMessagePack(Exception):  # noqa: N818
    """Kong: a Lua error, the request is a 500."""


class Refused(Exception):  # noqa: N818
    """An error response."""


def pack(value: object) -> bytes:
    return msgpack.packb(value, unicode_errors="surrogateescape")


def unpack(frame: bytes) -> Any:
    return msgpack.unpackb(frame, unicode_errors="surrogateescape", strict_map_key=False)


class Connection:
    """One connection: ``exchange`` sends a frame's bytes and reads up to its answer."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self.notifications: list[Any] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout_s)
        self._sock.connect(str(path))
        self._unpacker = self._fresh()

    @staticmethod
    def _fresh() -> Any:
        return msgpack.Unpacker(unicode_errors="surrogateescape", strict_map_key=False)

    def send(self, frame: bytes) -> None:
        self._sock.sendall(frame)

    def receive(self) -> Any:
        """The next frame: ``[1, msgid, error, result]`` or ``[2, label, argument]``.

        Raises TimeoutError, ClosedWithoutAnswer, NotMessagePack.
        """
        while True:
            try:
                for frame in self._unpacker:
                    if not isinstance(frame, list):
                        raise NotMessagePack(repr(frame))
                    return frame
            except (ValueError, msgpack.exceptions.UnpackException) as error:
                raise NotMessagePack(str(error)) from None
            try:
                data = self._sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise ClosedWithoutAnswer
            self._unpacker.feed(data)

    def exchange(self, frame: bytes) -> Any:
        """Send a request; its response, notifications aside."""
        try:
            self.send(frame)
        except BrokenPipeError:
            raise ClosedWithoutAnswer from None
        self._unpacker = self._fresh()
        return self.receive_answer()

    def receive_answer(self) -> Any:
        """The next response, notifications aside."""
        while True:
            answer = self.receive()
            if answer[0] == 2:
                self.notifications.append(answer[1:])
                continue
            return answer

    def is_readable(self) -> bool:
        return bool(select.select([self._sock], [], [], 0)[0])

    def was_closed(self) -> bool:
        """The server closed it, leaving nothing to read (waits)."""
        try:
            return self._sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._sock.close()


@dataclass
class Run:
    """What one event did: the PDK calls, and how it ended (``ret``, or the terminal call's arguments)."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    exit: Any = None


class Worker:
    """A Kong worker as one plugin's client. Threads may share it, as coroutines share it in Kong."""

    def __init__(self, path: Path, plugin: str = "probe", timeout_s: float = 5.0) -> None:
        self.plugin = plugin
        self.pids: list[int] = []
        self._path = path
        self._timeout_s = timeout_s
        self._pool: list[Connection] = []
        self._lock = threading.Lock()
        self._ids = itertools.count(1)

    def call(self, method: object, argument: object) -> Any:
        """One RPC. Raises Refused, ClosedWithoutAnswer, NotMessagePack, TimeoutError, OSError."""
        with self._lock:
            connection = self._pool.pop() if self._pool else None
            msgid = next(self._ids)
        if connection is None:
            connection = Connection(self._path, self._timeout_s)
        try:
            answer = connection.exchange(pack([0, msgid, method, [argument]]))
        except (ClosedWithoutAnswer, NotMessagePack):
            connection.close()
            raise
        except TimeoutError:
            self._put_back(connection)
            raise
        assert answer[:2] == [1, msgid], f"unexpected RPC response ID: {answer[1]} for {msgid}"
        self._put_back(connection)
        if answer[2] is not None:
            raise Refused(answer[2])
        return answer[3]

    def start(self, **config: object) -> Any:
        """StartInstance; the instance's id."""
        return self.call("plugin.StartInstance", {"Name": self.plugin, "Config": json.dumps(config)})["Id"]

    def run(self, instance_id: object, phase: str = "access", pdk: Callable[[str, Any], Any] | None = None) -> Run:
        """One event, PDK calls answered by ``pdk(method, arguments)`` (default: nothing)."""
        run = Run()
        answer = self.call("plugin.HandleEvent", {"InstanceId": instance_id, "EventName": phase})
        while answer["Data"] != "ret":
            method, args = answer["Data"]["Method"], answer["Data"]["Args"]
            if method in TERMINAL:
                run.exit = args
                return run
            run.calls.append((method, args))
            step: dict[str, Any] = {"EventId": answer["EventId"]}
            if pdk is not None and (result := pdk(method, args)) is not None:
                step["Data"] = result
            answer = self.call("plugin.Step", step)
        return run

    def given_up(self) -> int:
        """Pooled connections on which the server gives them up, waited for (nginx would close them then)."""
        with self._lock:
            return sum(connection.receive()[:2] == [2, "givenUp"] for connection in self._pool)

    def has_nothing_to_read(self) -> bool:
        return not any(connection.is_readable() for connection in self._pool)

    def close(self) -> None:
        for connection in self._pool:
            connection.close()
        self._pool.clear()

    @property
    def connections(self) -> int:
        return len(self._pool)

    def _put_back(self, connection: Connection) -> None:
        with self._lock:
            self.pids += [argument for label, argument in connection.notifications if label == "serverPid"]
            connection.notifications.clear()
            self._pool.append(connection)
