"""Server-sent events: one HTTP chunk per event, written as the engine steps, stopped when the client goes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from typing import Protocol

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.errors import ApiError, ConnectionCut
from kong_plugins.engine_sim.sequence import Step
from kong_plugins.engine_sim.service import Service, disconnected

DONE = b"data: [DONE]\n\n"


class EventWriter(Protocol):
    """An endpoint's wire shape: bytes of whole events."""

    def events(self, steps: list[Step]) -> Iterator[bytes]:
        """Events for tokens as they come."""

    def ending(self) -> Iterator[bytes]:
        """Events after the last token."""

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """Events that end the stream when the engine died."""


def error_events(error: ApiError) -> Iterator[bytes]:
    """vLLM's end of a stream whose engine died; spaced, unlike every other event."""
    yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"
    yield DONE


class EventStream(StreamingResponse):
    """A stream that a job feeds."""

    def __init__(self, service: Service, request: Request, job: Job, writer: EventWriter) -> None:
        super().__init__(iter(()), media_type="text/event-stream")
        self._service = service
        self._request = request
        self._job = job
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        watcher = asyncio.ensure_future(self._abort_when_gone())
        try:
            async for steps in self._job.batches():
                for event in self._writer.events(steps):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            if self._job.aborted:
                return
            ending = self._writer.ending()
        except ApiError as error:
            ending = self._writer.failed(error)
        except ConnectionCut as fault:
            await cut(scope, receive, fault)
            return
        finally:
            watcher.cancel()
        for event in ending:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _abort_when_gone(self) -> None:
        await disconnected(self._request)
        self._service.engine.abort(self._job)


async def cut(scope: Scope, receive: Receive, fault: ConnectionCut) -> None:
    """End the connection without another byte, and return when it is gone."""
    transport: asyncio.Transport = scope["state"]["transport"]
    if fault.reset:
        # Lingering for no time makes close send RST.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass
