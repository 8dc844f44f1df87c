"""A link served by callbacks of gevent's loop: no reader greenlet, and no switch but into the callers themselves."""

from __future__ import annotations

import _socket
import math
import os
import sys
import time
from collections import deque
from socket import socket
from typing import Any

import gevent
from greenlet import getcurrent

from kong_plugins.adapters.ledger.links import CLOSED, NO_ANSWER, NOT_ASKED, READ_BYTES, LinkBrokenError
from kong_plugins.adapters.ledger.resp import ProtocolError, Replies

_READ, _WRITE = 1, 2
_NONE_YET = object()


class _Waiter:
    """``greenlet`` is None once it waits no more (killed, or timed out by its own means): its reply still comes."""

    __slots__ = ("deadline", "greenlet", "reply")

    def __init__(self, deadline: float) -> None:
        self.greenlet: Any = getcurrent()
        self.deadline = deadline
        self.reply: object = _NONE_YET


class LoopLink:
    """A ``Link`` for the greenlets of one thread. Takes over ``sock``. What is asked for in one turn of the loop leaves
    in one write."""

    def __init__(self, sock: socket) -> None:
        self.pid = os.getpid()
        self.broken: str | None = None
        self._hub: Any = gevent.get_hub()
        self._loop: Any = self._hub.loop
        self._sock = _socket.socket(fileno=sock.detach())
        self._sock.setblocking(False)
        self._replies = Replies()
        self._queue: list[bytes] = []  # to be written at the end of this turn
        self._out = bytearray()  # what the socket did not take
        self._waiting: deque[_Waiter] = deque()
        self._timer: Any = None  # runs while somebody waits, and then once more
        self._timer_due = math.inf
        self._write: Any = None
        # Without a reference: an idle link does not keep a process alive. Whoever waits has the timer.
        self._read: Any = self._loop.io(self._sock.fileno(), _READ, ref=False)
        self._read.start(self._readable)

    def request(self, payload: bytes, deadline: float) -> object:
        if self.broken is not None:
            raise LinkBrokenError(self.broken)
        waiter = _Waiter(deadline)
        self._waiting.append(waiter)
        if not self._queue:
            self._loop.run_callback(self._flush)
        self._queue.append(payload)
        if deadline < self._timer_due:
            self._start_timer(deadline)
        try:
            while waiter.reply is _NONE_YET:  # something else may wake a greenlet
                self._hub.switch()
        finally:
            waiter.greenlet = None
        if isinstance(waiter.reply, LinkBrokenError):
            raise waiter.reply
        return waiter.reply

    def close(self, reason: str) -> None:
        if self.broken is not None:
            return
        self.broken = reason
        self._stop_timer()
        for watcher in (self._read, self._write):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._sock.close()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.reply = LinkBrokenError(reason)
            self._loop.run_callback(self._wake, waiter)  # the caller of close() may be no callback of the loop

    def _wake(self, waiter: _Waiter) -> None:
        """In the hub only: the woken greenlet's next wait comes back here."""
        if waiter.greenlet is not None:
            try:
                waiter.greenlet.switch()
            except Exception:  # noqa: BLE001 - a caller that ends with an error must not keep the others waiting
                self._hub.handle_error(self, *sys.exc_info())

    def _flush(self) -> None:
        batch, self._queue = b"".join(self._queue), []
        if self.broken is not None:
            return
        if self._out:
            self._out += batch
            return
        try:
            sent = self._sock.send(batch)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(f"sending failed: {error}")
            return
        if sent < len(batch):
            self._out += memoryview(batch)[sent:]
            self._write = self._loop.io(self._sock.fileno(), _WRITE)
            self._write.start(self._writable)

    def _writable(self) -> None:
        try:
            del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"sending failed: {error}")
            return
        if not self._out:
            self._write.stop()
            self._write.close()
            self._write = None

    def _readable(self) -> None:
        if self.pid != os.getpid():  # a fork's copy must not take its parent's replies
            self._read.stop()
            return
        try:
            data = self._sock.recv(READ_BYTES)
            replies = self._replies.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self.close(f"{type(error).__name__}: {error}")
            return
        ready = []
        for reply in replies:
            if not self._waiting:
                self.close(NOT_ASKED)
                break
            waiter = self._waiting.popleft()
            waiter.reply = reply
            ready.append(waiter)
        if not data:
            self.close(CLOSED)
        for waiter in ready:
            self._wake(waiter)

    def _start_timer(self, deadline: float) -> None:
        self._stop_timer()
        self._timer_due = deadline
        self._timer = self._loop.timer(max(0.0, deadline - time.monotonic()))
        self._timer.start(self._look_at_the_clock)

    def _stop_timer(self) -> None:
        self._timer_due = math.inf
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _look_at_the_clock(self) -> None:
        self._stop_timer()
        if self._waiting:
            oldest = self._waiting[0].deadline
            if oldest <= time.monotonic():
                self.close(NO_ANSWER)
            else:
                self._start_timer(oldest)
