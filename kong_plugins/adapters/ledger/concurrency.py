"""Waiting in threads or in greenlets: the few primitives the shared socket needs, so that it runs under both."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

Address = str | tuple[str, int]  # a unix socket's path, or host and port


class Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any: ...


class Event(Protocol):
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self) -> Any: ...


class Concurrency(Protocol):
    """``guard`` protects steps that never wait, ``lock`` those that may."""

    def guard(self) -> Lock: ...
    def lock(self) -> Lock: ...
    def event(self) -> Event: ...
    def spawn(self, function: Callable[[], None]) -> None:
        """Run beside us, for as long as it takes."""

    def soon(self, function: Callable[[], None]) -> None:
        """Run when whoever is about to ask for the same has done so; at once where that cannot be known."""

    def connect(self, address: Address, timeout_s: float) -> socket.socket: ...


class Threads:
    """Plain threads: command line, tests, and whatever gevent has patched."""

    def guard(self) -> Lock:
        return threading.Lock()

    def lock(self) -> Lock:
        return threading.Lock()

    def event(self) -> Event:
        return threading.Event()

    def spawn(self, function: Callable[[], None]) -> None:
        threading.Thread(target=function, name="ledger-replies", daemon=True).start()

    def soon(self, function: Callable[[], None]) -> None:
        function()

    def connect(self, address: Address, timeout_s: float) -> socket.socket:
        return _connect(socket, address, timeout_s)


class _Unguarded:
    """Greenlets switch only where they wait: between two waits everything is atomic."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002 - a lock's shape
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Greenlets:
    """gevent, patched or not. Every caller has to be a greenlet of the same thread."""

    def __init__(self) -> None:
        import gevent
        import gevent.event
        import gevent.lock
        import gevent.socket

        self._spawn = gevent.spawn
        self._event = gevent.event.Event
        self._semaphore = gevent.lock.BoundedSemaphore
        self._socket = gevent.socket

    def guard(self) -> Lock:
        return _Unguarded()

    def lock(self) -> Lock:
        semaphore: Lock = self._semaphore(1)
        return semaphore

    def event(self) -> Event:
        event: Event = self._event()
        return event

    def spawn(self, function: Callable[[], None]) -> None:
        self._spawn(function)

    def soon(self, function: Callable[[], None]) -> None:
        self._spawn(function)

    def connect(self, address: Address, timeout_s: float) -> socket.socket:
        return _connect(self._socket, address, timeout_s)


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
