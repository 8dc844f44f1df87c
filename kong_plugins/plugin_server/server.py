"""The process: accepts connections, watches its parent, drains and ends."""

from __future__ import annotations

import _socket
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event as Signal

from kong_plugins.plugin_server.connections import Connection
from kong_plugins.plugin_server.engine import Engine
from kong_plugins.plugin_server.instances import Instances
from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.socket_file import SocketFile

_ACCEPTS = 64  # in one go, so that a storm of connections does not starve those there are
_OUT_OF_FILES_PAUSE_S = 0.1
_DRAIN_POLL_S = 0.01


class Parent:
    """The process that started us. ``watched``: end when it ends.

    Kong's worker 0 starts plugin servers and a crashed worker leaves them behind. By hand, under systemd or as a
    container's first process nothing follows from the parent: its end, or its being PID 1, means nothing.
    """

    def __init__(self, watch: str) -> None:
        self._pid = os.getppid()
        self.watched = watch == "always" or (watch == "auto" and _is_nginx(self._pid))

    def is_gone(self) -> bool:
        return self.watched and os.getppid() != self._pid


class Server:
    """Runs until SIGTERM, SIGINT or the parent's end; then finishes what is under way, for ``drain_s`` at most."""

    def __init__(
        self, file: SocketFile, engine: Engine, instances: Instances, *, parent: Parent, sweep_s: float, drain_s: float
    ) -> None:
        self._file = file
        self._engine = engine
        self._instances = instances
        self._parent = parent
        self._sweep_s = sweep_s
        self._drain_s = drain_s
        self._loop: Any = gevent.get_hub().loop
        self._connections: set[Connection] = set()
        self._ending = Signal()
        self._watchers: list[Any] = []
        self._accepting: Any = self._loop.io(file.socket.fileno(), 1)
        self._withdrawn = False

    def run(self) -> None:
        """Serve until told to end. On return the socket is gone and every instance closed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._watch(self._loop.signal(number), self._ending.set)
        self._watch(self._loop.timer(self._sweep_s, self._sweep_s), self._sweep)
        self._watch(self._accepting, self._accept)
        log.info("serving %s at %s, pid %d", ", ".join(self._instances.names), self._file.path, os.getpid())
        self._ending.wait()
        self._drain()
        self._withdrawn = True
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._file.withdraw()
        self._engine.abandon_all()
        gevent.sleep(0)  # let them unwind
        for connection in list(self._connections):
            connection.close()
        self._instances.close_all()
        log.info("ended")

    def _drain(self) -> None:
        """Refuse new requests, finish events, also over new connections: Kong's next Step may come on one."""
        self._engine.draining = True
        log.info("ending: %d events under way", self._engine.busy)
        end = time.monotonic() + self._drain_s
        while self._engine.busy:
            if time.monotonic() > end:
                log.error("ending with %d events under way", self._engine.busy)
                return
            gevent.sleep(_DRAIN_POLL_S)

    def _watch(self, watcher: Any, callback: Any) -> Any:
        watcher.start(callback)
        self._watchers.append(watcher)
        return watcher

    def _sweep(self) -> None:
        self._engine.sweep()
        if self._parent.is_gone() and not self._ending.is_set():
            log.info("Kong's worker has ended")
            self._ending.set()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                descriptor, _address = self._file.socket._accept()  # type: ignore[attr-defined]  # accept() would make a patched socket
            except BlockingIOError:
                return
            except OSError as error:
                log.error("cannot accept a connection: %s", error)
                gevent.spawn_later(0, self._pause_accepting)
                return
            sock = _socket.socket(fileno=descriptor)
            sock.setblocking(False)
            self._connections.add(Connection(self._loop, sock, self._engine.receive, self._closed))

    def _pause_accepting(self) -> None:
        # The pending connection keeps the listener readable: without a pause this would spin.
        self._accepting.stop()
        gevent.sleep(_OUT_OF_FILES_PAUSE_S)
        if not self._withdrawn:
            self._accepting.start(self._accept)

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._engine.connection_closed(connection)


def _is_nginx(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "nginx"
    return False
