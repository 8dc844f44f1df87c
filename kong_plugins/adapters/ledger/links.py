"""A connected socket that many callers share: their requests go out in one stream, replies come in the same order.

When the oldest reply is late all are: then, and when the socket breaks, everybody who waits is told at once and the
link is over. A late answer reaches nobody.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from socket import SHUT_RDWR, socket
from typing import Protocol

from kong_plugins.adapters.ledger.resp import Replies

READ_BYTES = 65536
NO_ANSWER = "no answer in time"
CLOSED = "the server closed the connection"
NOT_ASKED = "the server sent an answer that nobody asked for"


class LinkBrokenError(Exception):
    """The socket is gone. A request that was under way may have taken effect, or not."""


class Link(Protocol):
    """``pid`` is the process it belongs to; ``broken`` says why it is over, None while it is not."""

    pid: int
    broken: str | None

    def request(self, payload: bytes, deadline: float) -> object:
        """The reply, also when it is an error. ``deadline`` is a time of ``time.monotonic``.

        Raises:
            LinkBrokenError: there will be none.
        """

    def close(self, reason: str) -> None: ...


class _Waiter:
    __slots__ = ("deadline", "done", "reply")

    def __init__(self, deadline: float) -> None:
        self.done = threading.Event()
        self.deadline = deadline
        self.reply: object = None


class ThreadLink:
    """For plain threads: one more of them reads the replies."""

    def __init__(self, sock: socket) -> None:
        self.pid = os.getpid()
        self.broken: str | None = None
        self._sock = sock
        self._replies = Replies()
        self._queue: list[bytes] = []
        self._waiting: list[_Waiter] = []
        self._flush_due = False
        self._guard = threading.Lock()  # of the fields above; never held while waiting
        self._sending = threading.Lock()
        self._wanted = threading.Event()  # set while somebody waits
        threading.Thread(target=self._receive, name="ledger-replies", daemon=True).start()

    def request(self, payload: bytes, deadline: float) -> object:
        waiter = _Waiter(deadline)
        with self._guard:
            if self.broken is not None:
                raise LinkBrokenError(self.broken)
            if not self._waiting:
                self._wanted.set()
            self._waiting.append(waiter)
            self._queue.append(payload)
            flush, self._flush_due = not self._flush_due, True
        if flush:
            self._flush()
        waiter.done.wait()
        if isinstance(waiter.reply, LinkBrokenError):
            raise waiter.reply
        return waiter.reply

    def close(self, reason: str) -> None:
        with self._guard:
            self.broken = self.broken or reason
            waiting, self._waiting = self._waiting, []
            self._wanted.set()
        with contextlib.suppress(OSError):  # it may be closed already
            self._sock.shutdown(SHUT_RDWR)  # the reader wakes up and closes it
        for waiter in waiting:
            waiter.reply = LinkBrokenError(self.broken)
            waiter.done.set()

    def _flush(self) -> None:
        with self._sending:
            with self._guard:
                batch, self._queue = self._queue, []
                self._flush_due = False
            try:
                self._sock.sendall(b"".join(batch))
            except OSError as error:
                self.close(f"sending failed: {error}")

    def _receive(self) -> None:
        try:
            while self.broken is None:
                self._wanted.wait()
                with self._guard:
                    deadline = self._waiting[0].deadline if self._waiting else None
                    if deadline is None and self.broken is None:
                        self._wanted.clear()
                if deadline is not None:
                    self._receive_some(deadline)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting for this reader
            self.close(f"{type(error).__name__}: {error}")
        finally:
            self._sock.close()

    def _receive_some(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            data = self._sock.recv(READ_BYTES)
        except TimeoutError:
            self.close(NO_ANSWER)
            return
        replies = self._replies.feed(data)
        with self._guard:
            ready, self._waiting = self._waiting[: len(replies)], self._waiting[len(replies) :]
        for waiter, reply in zip(ready, replies, strict=False):
            waiter.reply = reply
            waiter.done.set()
        if not data:
            self.close(CLOSED)
        elif len(ready) < len(replies):
            self.close(NOT_ASKED)
