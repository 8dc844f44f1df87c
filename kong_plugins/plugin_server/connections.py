"""One connection from a Kong worker, read and written by callbacks of gevent's loop: no greenlet, no switch for I/O."""

from __future__ import annotations

import _socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kong_plugins.plugin_server import frames
from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.redaction import story_of

if TYPE_CHECKING:
    from kong_plugins.plugin_server.events import Work

_READ, _WRITE = 1, 2
_CHUNK = 65536


class Connection:
    """Kong sends one frame at a time on it and waits for the answer; the next frame may belong to any event.

    ``owner`` is the work whose answer is due on it. ``mid_event``: the last answer was a PDK call, whose Step Kong
    sends on the connection that it used last. ``told`` are the plugins whose Kong-side client has been sent our
    pid on it: Kong keeps the pid for each plugin, and plugins that share a socket share its connections.
    """

    __slots__ = (
        "_closed",
        "_closing",
        "_given_up",
        "_loop",
        "_out",
        "_read",
        "_receive",
        "_sock",
        "_unpacker",
        "_write",
        "mid_event",
        "owner",
        "told",
    )

    def __init__(
        self,
        loop: Any,
        sock: _socket.socket,
        receive: Callable[[Connection, Any], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self.owner: Work | None = None
        self.mid_event = False
        self.told: set[str] = set()
        self._loop = loop
        self._sock = sock
        self._receive = receive
        self._closed = closed
        self._closing = False
        self._given_up = False
        self._out = bytearray()
        self._unpacker = frames.unpacker()
        self._write: Any = None
        self._read: Any = loop.io(sock.fileno(), _READ)
        self._read.start(self._readable)

    @property
    def is_open(self) -> bool:
        return self._read is not None

    def send(self, frame: bytes) -> bool:
        """Send all of it, now or as the socket takes it. False: the connection is gone."""
        if self._read is None:
            return False
        if self._out:
            self._out += frame
            return True
        try:
            sent = self._sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        if sent < len(frame):
            self._out += memoryview(frame)[sent:]
            self._write = self._loop.io(self._sock.fileno(), _WRITE)
            self._write.start(self._writable)
        return True

    def send_last(self, frame: bytes) -> None:
        """Send and close."""
        self._closing = True
        if self.send(frame) and not self._out:
            self.close()

    def give_up(self) -> None:
        """Have Kong close it where it lies idle, and lose nothing that Kong sends on it just now: nginx closes an idle
        connection that turns readable, and a request's reader skips a notification of no name that it knows. Closed by
        us, a frame under way would be lost."""
        if self.owner is None and not self.mid_event and not self._given_up:
            self._given_up = self.send(frames.GIVEN_UP)

    def break_off(self) -> None:
        """Close without an answer, in a way that fails closed (see :data:`frames.BROKEN`)."""
        if not self._out:  # in the middle of a frame the end alone says it
            self.send(frames.BROKEN)
        self.close()

    def close(self) -> None:
        if self._read is None:
            return
        for watcher in (self._read, self._write):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._read = self._write = None
        self._sock.close()
        self._closed(self)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            self._unpacker.feed(data)
            for frame in self._unpacker:
                self.mid_event = self._given_up = False
                self._receive(self, frame)
                if self._read is None:
                    return
        except frames.UNDECODABLE as error:
            log.error("closing a connection: a frame from Kong cannot be decoded (%s)", type(error).__name__)
            self.break_off()
        except Exception as error:  # noqa: BLE001  # a fault of ours: this connection alone pays, and fails closed
            log.error("closing a connection: %s", story_of(error, ()))
            self.break_off()

    def _writable(self) -> None:
        try:
            del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._out:
            self._write.stop()
            self._write.close()
            self._write = None
            if self._closing:
                self.close()
