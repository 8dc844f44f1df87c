"""One request to an OpenAI-compatible chat endpoint, its answer read as it comes; hundreds run at once."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

READ_BYTES = 65536
TOKEN_FIELDS = ("content", "reasoning", "reasoning_content")
REQUEST_ID_HEADERS = (b"x-kong-request-id",)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. ``url``: an API's base as OpenAI's SDKs take it (``http://127.0.0.1:8000/v1``)."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"not an http:// address: {self.url}")
        return parts.hostname, parts.port or 80

    def path(self, endpoint: str) -> str:
        return f"{urlsplit(self.url).path.rstrip('/')}/{endpoint}"


@dataclass(slots=True)
class Reply:
    """What came back. Seconds are from sending; tokens are the last usage seen (``-1``: none was)."""

    status: int = 0
    first_s: float | None = None  # to the first event that holds text
    last_s: float | None = None  # to the last event
    total_s: float = 0.0
    prompt: int = -1
    completion: int = -1
    cached: int = 0
    events: int = 0
    left: bool = False  # we went away before its end
    request_id: str = ""
    error: str = ""
    sent_ns: int = 0  # since the epoch

    @property
    def good(self) -> bool:
        return not self.error


@dataclass(slots=True)
class _Stream:
    """Server-sent events, looked into only as far as needed: up to the first text, and the last usage."""

    rest: bytes = b""
    last: bytes = b""
    reply: Reply = field(default_factory=Reply)

    def feed(self, data: bytes, at_s: float) -> None:
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            line = event[event.rfind(b"data: ") :]
            if not line.startswith(b"data: {"):
                continue
            self.last = line
            self.reply.events += 1
            self.reply.last_s = at_s
            if self.reply.first_s is None and _has_text(json.loads(line[6:])):
                self.reply.first_s = at_s


def _has_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        if choice.get("text") or any((choice.get("delta") or {}).get(name) for name in TOKEN_FIELDS):
            return True
    return False


def _take_usage(reply: Reply, answer: dict[str, Any]) -> None:
    usage = answer.get("usage")
    if usage:
        reply.prompt, reply.completion = usage["prompt_tokens"], usage["completion_tokens"]
        reply.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


class Connection:
    """A keep-alive connection to one target; opened when first needed and again after it was closed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._host, self._port = target.address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, endpoint: str, body: dict[str, Any], leave_after: int | None = None) -> Reply:
        """Send ``body`` and read the answer; with ``leave_after``, go away after so many events.

        Never raises for what the network or the server does: the reply's ``error`` says it.
        """
        stream = _Stream()
        reply = stream.reply
        reply.sent_ns = time.time_ns()
        started = time.perf_counter()
        try:
            await self._send(endpoint, json.dumps(body).encode())
            await self._receive(stream, started, streaming=bool(body.get("stream")), leave_after=leave_after)
        except (OSError, EOFError, h11.RemoteProtocolError, ValueError, KeyError) as error:
            reply.error = f"{type(error).__name__}: {error}"[:200]
        reply.total_s = time.perf_counter() - started
        if reply.error or reply.left or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self.close()
        else:
            self._http.start_next_cycle()
        return reply

    def close(self) -> None:
        """Now, also in the middle of an answer."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
        self._http = h11.Connection(h11.CLIENT)

    async def _send(self, endpoint: str, content: bytes) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=READ_BYTES)
        headers = [
            ("Host", f"{self._host}:{self._port}"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            *self._target.headers,
        ]
        head = h11.Request(method="POST", target=self._target.path(endpoint), headers=headers)
        pieces = [self._http.send(head), self._http.send(h11.Data(data=content)), self._http.send(h11.EndOfMessage())]
        self._writer.write(b"".join(piece for piece in pieces if piece))

    async def _receive(self, stream: _Stream, started: float, *, streaming: bool, leave_after: int | None) -> None:
        assert self._reader is not None
        reply, whole = stream.reply, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(READ_BYTES)
                at_s = time.perf_counter() - started
                if not data:
                    raise EOFError("the connection ended within an answer")
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                reply.status = event.status_code
                reply.request_id = next((v.decode() for n, v in event.headers if n in REQUEST_ID_HEADERS), "")
            elif isinstance(event, h11.Data):
                if not streaming or reply.status != 200:
                    whole += event.data
                    continue
                stream.feed(bytes(event.data), at_s)
                if leave_after is not None and reply.events >= leave_after:
                    reply.left = True
                    _take_usage(reply, json.loads(stream.last[6:]))
                    return
            elif isinstance(event, h11.EndOfMessage):
                break
        if reply.status != 200:
            reply.error = f"{reply.status} {bytes(whole[:160]).decode(errors='replace')}"
        else:
            _take_usage(reply, json.loads(stream.last[6:] if streaming else bytes(whole)))
            if reply.completion < 0:
                reply.error = "an answer without usage: serve with --enable-force-include-usage"
