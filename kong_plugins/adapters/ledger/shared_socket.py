"""One socket for all callers of a process. Requests queued in the same turn of the loop leave in one write, replies are
handed out in order. Measured several times as fast as a pool, whose cost is checking connections out and in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from socket import socket

from kong_plugins.adapters.ledger.concurrency import Concurrency
from kong_plugins.adapters.ledger.connections import Argument, Command, Script, by_hash, by_source, refused
from kong_plugins.adapters.ledger.links import READ_BYTES, Link, LinkBrokenError
from kong_plugins.adapters.ledger.resp import Replies, ServerError, encode
from kong_plugins.application.ports import LedgerUnavailable

_NOT_SERVING = frozenset({"READONLY", "LOADING", "MASTERDOWN"})  # somebody else may serve at this address soon


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
        self._link: Link | None = None
        self._connecting = concurrency.lock()
        # The last attempt to connect that failed: when, and why.
        self._failed: tuple[float, LedgerUnavailable] = (0.0, LedgerUnavailable())

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        reply = self._request(encode(by_hash(script, keys, args)), deadline)
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            reply = self._request(encode(by_source(script, keys, args)), deadline)
        if isinstance(reply, bytes):
            return reply
        raise refused(script.name, str(reply))

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close("closed by us")

    def _request(self, payload: bytes, deadline: float) -> object:
        try:
            return self._request_once(payload, deadline)
        except LinkBrokenError as first:
            if time.monotonic() >= deadline:
                raise LedgerUnavailable(str(first)) from first
        try:
            return self._request_once(payload, deadline)
        except LinkBrokenError as second:
            raise LedgerUnavailable(f"twice: {second}") from second

    def _request_once(self, payload: bytes, deadline: float) -> object:
        link = self._link
        if link is None or link.broken is not None or link.pid != os.getpid():  # a fork must not share its parent's
            link = self._connect(deadline)
        reply = link.request(payload, deadline)
        if isinstance(reply, ServerError) and reply.code in _NOT_SERVING:
            link.close(str(reply))
        return reply

    def _connect(self, deadline: float) -> Link:
        asked = time.monotonic()
        if not self._connecting.acquire(timeout=max(0.0, deadline - asked)):
            raise LedgerUnavailable("connecting takes too long")
        try:
            link = self._link
            if link is not None and link.broken is None and link.pid == os.getpid():
                return link
            failed_at, why = self._failed
            if failed_at > asked:  # while we waited for our turn: do not make a queue of attempts
                raise type(why)(str(why))
            try:
                self._link = link = self._open(max(0.001, deadline - time.monotonic()))
            except (OSError, ServerError) as error:
                why = _cannot_connect(error)
                self._failed = (time.monotonic(), why)
                raise why from error
            return link
        finally:
            self._connecting.release()

    def _open(self, timeout_s: float) -> Link:
        sock = self._open_socket(timeout_s)
        try:
            replies = Replies()
            for command in self._greeting:
                sock.sendall(command)
                answers: list[object] = []
                while not answers:
                    data = sock.recv(READ_BYTES)
                    if not data:
                        raise ConnectionError("the server closed the connection")
                    answers = replies.feed(data)
                if isinstance(answers[0], ServerError):
                    raise answers[0]
        except BaseException:
            sock.close()
            raise
        return self._concurrency.link(sock)


def _cannot_connect(error: OSError | ServerError) -> LedgerUnavailable:
    what = "cannot connect"
    return refused(what, str(error)) if isinstance(error, ServerError) else LedgerUnavailable(f"{what}: {error}")
