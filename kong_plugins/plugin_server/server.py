"""The process: accepts connections, watches its parent, drains and ends."""

from __future__ import annotations

import _socket
import os
import signal
import time
from typing import Any

import gevent
from gevent.event import Event as Signal

from kong_plugins.plugin_server.ancestry import Parent
from kong_plugins.plugin_server.connections import Connection
from kong_plugins.plugin_server.engine import Engine
from kong_plugins.plugin_server.instances import Instances
from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.socket_file import SocketFile

_ACCEPTS = 64  # in one go, so that a storm of connections does not starve those there are
_OUT_OF_FILES_PAUSE_S = 0.1
_DRAIN_POLL_S = 0.01
_STAY_POLL_S = 0.05


class Server:
    """Runs until SIGTERM or SIGINT, and then finishes what is under way, for ``drain_s`` at most; or until Kong's
    worker has ended and nobody talks to it any more."""

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
        self._left = False  # by Kong's worker

    def run(self) -> None:
        """Serve until told to end. On return the socket is gone and every instance closed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._watch(self._loop.signal(number), self._ending.set)
        self._watch(self._loop.timer(self._sweep_s, self._sweep_s), self._sweep)
        self._watch(self._accepting, self._accept)
        log.info("serving %s at %s, pid %d", ", ".join(self._instances.names), self._file.path, os.getpid())
        self._ending.wait()
        if self._parent.is_gone():
            self._stay()
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

    def _stay(self) -> None:
        """Serve on: a reload's next worker has connections to us, and no server of its own yet. Once it has one, that
        one gets them; at Kong's own end there are none."""
        self._ending.clear()
        alone = time.monotonic()
        while not self._ending.wait(_STAY_POLL_S):
            replaced = self._file.is_replaced()
            if replaced:
                self._hand_over()
            if self._connections or self._engine.busy:
                alone = time.monotonic()
            elif replaced or self._parent.kong_is_gone or time.monotonic() - alone > self._drain_s:
                return

    def _drain(self) -> None:
        """Finish events, also over new connections: Kong's next Step may come on one. New requests go to the process
        that took our place; without one they are refused."""
        replaced = self._file.is_replaced()
        self._engine.draining = not replaced
        log.info("ending: %d events under way", self._engine.busy)
        end = time.monotonic() + self._drain_s
        while self._engine.busy or (replaced and self._connections):
            if time.monotonic() > end:
                if self._engine.busy:
                    log.error("ending with %d events under way", self._engine.busy)
                return
            if replaced:
                self._hand_over()
            gevent.sleep(_DRAIN_POLL_S)

    def _hand_over(self) -> None:
        for connection in list(self._connections):
            connection.give_up()

    def _watch(self, watcher: Any, callback: Any) -> Any:
        watcher.start(callback)
        self._watchers.append(watcher)
        return watcher

    def _sweep(self) -> None:
        self._engine.sweep()
        if self._ending.is_set() or self._left:
            return
        if self._parent.is_gone():
            self._left = True
            log.info("Kong's worker has ended")
            self._ending.set()
        elif self._parent.is_unwanted():
            log.info("the process that Kong started has been ended")
            self._ending.set()
        elif self._file.is_gone():
            self._appear_again()

    def _appear_again(self) -> None:
        """Somebody removed our socket, as a clean-up of old files may: Kong would not start us again, as we run."""
        try:
            file = self._file.renewed()
            file.publish()
        except OSError as error:
            log.error("our socket %s is gone, and cannot be made again: %s", self._file.path, error)
            return
        log.error("our socket %s was removed: it is there again", file.path)
        self._accept()  # who connected to the old one before
        self._watchers.remove(self._accepting)
        self._accepting.stop()
        self._accepting.close()
        self._file.withdraw()
        self._file = file
        self._accepting = self._watch(self._loop.io(file.socket.fileno(), 1), self._accept)

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
