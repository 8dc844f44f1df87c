"""HTTP/1.1 for the collector, whose clients do not keep it waiting: whoever opens a connection asks something on it.

A module of its own: uvicorn's protocol is imported only where a collector listens.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0


class PromptProtocol(H11Protocol):
    """Closes a connection on which no request's head has come whole within ``HEAD_S``; uvicorn itself would wait for
    ever for a first one, and for a later one once its first byte is there."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._due = self.loop.call_later(HEAD_S, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._disarm()
        elif self._due is None:
            self._due = self.loop.call_later(HEAD_S, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _late(self) -> None:
        self._due = None
        self.transport.close()

    def _disarm(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
