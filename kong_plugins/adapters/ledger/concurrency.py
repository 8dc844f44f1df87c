"""Waiting in threads or in greenlets: the few primitives the shared socket needs, so that it runs under both."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Protocol

from kong_plugins.adapters.ledger.links import Link, ThreadLink

Address = str | tuple[str, int]  # a unix socket's path, or host and port


class Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any: ...


class Concurrency(Protocol):
    def lock(self) -> Lock: ...
    def connect(self, address: Address, timeout_s: float) -> socket.socket: ...
    def link(self, sock: socket.socket) -> Link: ...


class Threads:
    """Plain threads: command line and tests."""

    def lock(self) -> Lock:
        return threading.Lock()

    def connect(self, address: Address, timeout_s: float) -> socket.socket:
        return _connect(socket, address, timeout_s)

    def link(self, sock: socket.socket) -> Link:
        return ThreadLink(sock)


class Greenlets:
    """gevent, patched or not. Every caller has to be a greenlet of the same thread."""

    def __init__(self) -> None:
        import gevent.lock
        import gevent.socket

        from kong_plugins.adapters.ledger.loop_link import LoopLink

        self._semaphore = gevent.lock.BoundedSemaphore
        self._socket = gevent.socket
        self._link = LoopLink

    def lock(self) -> Lock:
        semaphore: Lock = self._semaphore(1)
        return semaphore

    def connect(self, address: Address, timeout_s: float) -> socket.socket:
        return _connect(self._socket, address, timeout_s)

    def link(self, sock: socket.socket) -> Link:
        return self._link(sock)


def detect() -> Concurrency:
    """Greenlets where gevent has patched sockets, else threads."""
    try:
        from gevent.monkey import is_module_patched
    except ImportError:
        return Threads()
    return Greenlets() if is_module_patched("socket") else Threads()


def _connect(module: Any, address: Address, timeout_s: float) -> socket.socket:
    sock: socket.socket
    if isinstance(address, str):
        sock = module.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    sock = module.create_connection(address, timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
