"""The server whose place at the socket's path this one took.

A worker of Kong that ends keeps no connection, so each step of an event goes to whoever is at the path by then. An
event that began with the predecessor is known there only: this process passes such a step on.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from kong_plugins.plugin_server import frames

_CHUNK = 65536


class PredecessorGone(Exception):  # noqa: N818 - what it is
    """Nobody answers there."""


class StepRefused(Exception):  # noqa: N818 - what it is
    """The predecessor's error, in its words."""


class Predecessor:
    """Held by its file, not by a name: the name is the successor's. ``of`` is called before the file is replaced."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, path: Path) -> Predecessor:
        with suppress(OSError):
            return cls(os.open(path, os.O_PATH | os.O_NOFOLLOW))
        return cls(None)

    def step(self, msgid: int, method: object, argument: object) -> object:
        """What it answers. Waits; for how long is the caller's to bound.

        Raises:
            PredecessorGone, StepRefused
        """
        if self._descriptor is None:
            raise PredecessorGone
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(f"/proc/self/fd/{self._descriptor}")
                connection.sendall(frames.request(msgid, method, argument))
                return _answer(connection)
        except OSError:
            raise PredecessorGone from None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _answer(connection: socket.socket) -> Any:
    unpacker = frames.unpacker()
    while data := connection.recv(_CHUNK):
        unpacker.feed(data)
        for frame in unpacker:
            if frame[0] != frames.RESPONSE:
                continue  # its notifications are not for Kong, which would take its pid for ours
            if frame[2] is not None:
                raise StepRefused(frame[2])
            return frame[3]
    raise PredecessorGone
