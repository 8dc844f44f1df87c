"""One socket for all callers of a process. Requests queued in the same turn of the loop leave in one write, replies are
handed out in order. Measured several times as fast as a pool, whose cost is checking connections out and in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from socket import SHUT_RDWR, socket

from kong_plugins.adapters.ledger.concurrency import Concurrency, Event
from kong_plugins.adapters.ledger.connections import Argument, Command, Script, advice, by_hash, by_source
from kong_plugins.adapters.ledger.resp import Replies, ServerError, encode
from kong_plugins.application.ports import LedgerUnavailable

_READ_BYTES = 65536
_NOT_SERVING = frozenset({"READONLY", "LOADING", "MASTERDOWN"})  # somebody else may serve at this address soon


class _LinkBrokenError(Exception):
    """The socket is gone. A request that was under way may have taken effect, or not."""


class _Waiter:
    __slots__ = ("deadline", "done", "reply")

    def __init__(self, done: Event, deadline: float) -> None:
        self.done = done
        self.deadline = deadline
        self.reply: object = None


class _Link:
    """A connected socket. Replies come in the order of the requests, so when the oldest is late all are: then, and when
    the socket breaks, everybody who waits is told at once and the link is over. A late answer reaches nobody."""

    def __init__(self, sock: socket, concurrency: Concurrency) -> None:
        self.pid = os.getpid()
        self.broken: str | None = None
        self._sock = sock
        self._concurrency = concurrency
        self._replies = Replies()
        self._queue: list[bytes] = []
        self._waiting: list[_Waiter] = []
        self._flush_due = False
        self._guard = concurrency.guard()  # of the fields above
        self._sending = concurrency.lock()
        self._wanted = concurrency.event()  # set while somebody waits
        concurrency.spawn(self._receive)

    def request(self, payload: bytes, deadline: float) -> object:
        """The reply, also when it is an error.

        Raises:
            _LinkBrokenError: there will be none.
        """
        waiter = _Waiter(self._concurrency.event(), deadline)
        with self._guard:
            if self.broken is not None:
                raise _LinkBrokenError(self.broken)
            if not self._waiting:
                self._wanted.set()
            self._waiting.append(waiter)
            self._queue.append(payload)
            flush, self._flush_due = not self._flush_due, True
        if flush:
            self._concurrency.soon(self._flush)
        waiter.done.wait()
        if isinstance(waiter.reply, _LinkBrokenError):
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
            waiter.reply = _LinkBrokenError(self.broken)
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
            data = self._sock.recv(_READ_BYTES)
        except TimeoutError:
            self.close("no answer in time")
            return
        replies = self._replies.feed(data)
        with self._guard:
            ready, self._waiting = self._waiting[: len(replies)], self._waiting[len(replies) :]
        for waiter, reply in zip(ready, replies, strict=False):
            waiter.reply = reply
            waiter.done.set()
        if not data:
            self.close("the server closed the connection")
        elif len(ready) < len(replies):
            self.close("the server sent an answer that nobody asked for")


class SharedSocket:
    """``Connections`` over one socket that is opened when first needed and again after it broke.

    ``open_socket`` gets the seconds it may take; ``greeting`` is sent first on each (AUTH, SELECT).
    """

    def __init__(
        self,
        open_socket: Callable[[float], socket],
        concurrency: Concurrency,
        *,
        timeout_s: float,
        greeting: Sequence[Command] = (),
    ) -> None:
        self._open_socket = open_socket
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._greeting = [encode(command) for command in greeting]
        self._link: _Link | None = None
        self._connecting = concurrency.lock()
        self._failed: tuple[float, str] = (0.0, "")  # the last attempt to connect that failed: when, and why

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        reply = self._request(encode(by_hash(script, keys, args)), deadline)
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            reply = self._request(encode(by_source(script, keys, args)), deadline)
        if isinstance(reply, bytes):
            return reply
        raise LedgerUnavailable(f"{script.name}: {advice(str(reply))}")

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close("closed by us")

    def _request(self, payload: bytes, deadline: float) -> object:
        try:
            return self._request_once(payload, deadline)
        except _LinkBrokenError as first:
            if time.monotonic() >= deadline:
                raise LedgerUnavailable(str(first)) from first
        try:
            return self._request_once(payload, deadline)
        except _LinkBrokenError as second:
            raise LedgerUnavailable(f"twice: {second}") from second

    def _request_once(self, payload: bytes, deadline: float) -> object:
        link = self._link
        if link is None or link.broken is not None or link.pid != os.getpid():  # a fork must not share its parent's
            link = self._connect(deadline)
        reply = link.request(payload, deadline)
        if isinstance(reply, ServerError) and reply.code in _NOT_SERVING:
            link.close(str(reply))
        return reply

    def _connect(self, deadline: float) -> _Link:
        asked = time.monotonic()
        if not self._connecting.acquire(timeout=max(0.0, deadline - asked)):
            raise LedgerUnavailable("connecting takes too long")
        try:
            link = self._link
            if link is not None and link.broken is None and link.pid == os.getpid():
                return link
            failed_at, why = self._failed
            if failed_at > asked:  # while we waited for our turn: do not make a queue of attempts
                raise LedgerUnavailable(why)
            try:
                self._link = link = self._open(max(0.001, deadline - time.monotonic()))
            except (OSError, ServerError) as error:
                why = f"cannot connect: {advice(str(error)) if isinstance(error, ServerError) else error}"
                self._failed = (time.monotonic(), why)
                raise LedgerUnavailable(why) from error
            return link
        finally:
            self._connecting.release()

    def _open(self, timeout_s: float) -> _Link:
        sock = self._open_socket(timeout_s)
        try:
            replies = Replies()
            for command in self._greeting:
                sock.sendall(command)
                answers: list[object] = []
                while not answers:
                    data = sock.recv(_READ_BYTES)
                    if not data:
                        raise ConnectionError("the server closed the connection")
                    answers = replies.feed(data)
                if isinstance(answers[0], ServerError):
                    raise answers[0]
        except BaseException:
            sock.close()
            raise
        return _Link(sock, self._concurrency)
