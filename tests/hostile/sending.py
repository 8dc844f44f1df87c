"""Bytes on a socket, and what came back."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from io import BytesIO

from tests.hostile.heads import Wire

WHOLE_S = 20.0
IDLE_S = 0.3  # a server that waits for more of a request says nothing
PAUSE_S = 0.02

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass
class Came:
    """``statuses``: of every answer on the connection; empty: it was closed, or left, without one."""

    wire: Wire
    data: bytes
    waited_out: bool

    @property
    def statuses(self) -> list[int]:
        return [int(found) for found in _STATUS.findall(self.data)]

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """The first answer: status, headers with small letters, body; None where it is not whole."""
        try:
            response = HTTPResponse(_Bytes(self.data))  # type: ignore[arg-type]
            response.begin()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        except (HTTPException, ValueError, OSError):
            return None


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> BytesIO:
        return BytesIO(self._data)


def send(port: int, wire: Wire, decent: bool) -> Came:
    """``decent``: the answer is waited for; else the server may be waiting for more, and is left after ``IDLE_S``."""
    data, waited_out = bytearray(), False
    with socket.create_connection(("127.0.0.1", port), timeout=WHOLE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if wire.pause_at is None:
                connection.sendall(wire.data)
            else:
                connection.sendall(wire.data[: wire.pause_at])
                time.sleep(PAUSE_S)
                connection.sendall(wire.data[wire.pause_at :])
        except OSError:
            pass  # refused before its end, and perhaps answered
        connection.settimeout(WHOLE_S if decent else IDLE_S)
        try:
            while wire.leave_after is None or len(data) < wire.leave_after:
                piece = connection.recv(65536)
                if not piece:
                    break
                data += piece
        except TimeoutError:
            waited_out = True
        except OSError:
            pass
    return Came(wire, bytes(data), waited_out)
