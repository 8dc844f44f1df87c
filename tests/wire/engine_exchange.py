"""Raw HTTP exchanges: what a recording holds and what a server answers, taken apart the same way."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "vllm"

_MASKS = (
    (re.compile(rb"(chatcmpl-|cmpl-|resp_|rs_|msg_|modelperm-)[0-9a-f]{16}\b"), rb"\g<1>................"),
    (re.compile(rb'"(created|created_at)":\d+'), rb'"\g<1>":0'),
    (re.compile(rb"vllm-0\.32\.0-[0-9a-f]{8}"), b"vllm-0.32.0-........"),
    (re.compile(rb'"signature":"[0-9a-f]{32}"'), b'"signature":"................................"'),
)


def masked(data: bytes) -> bytes:
    """Without what differs from answer to answer: generated ids, times, fingerprint, signature."""
    for pattern, instead in _MASKS:
        data = pattern.sub(instead, data)
    return data


@dataclass
class Exchange:
    """One answer. ``chunks`` is None for a body with a length; ``complete`` is False when it ended early."""

    status: bytes
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes] | None
    complete: bool
    error: BaseException | None = field(default=None)

    @property
    def code(self) -> int:
        return int(self.status.split()[1])

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]

    def comparable_headers(self) -> list[tuple[str, str]]:
        """Sorted, with the date, generated request ids and the length of masked bodies left out of the values."""
        shown = []
        for name, value in self.headers:
            generated = name == "date" or (name == "x-request-id" and re.fullmatch("[0-9a-f]{32}", value))
            shown.append((name, "" if generated else value))
        return sorted(shown)


async def read_exchange(reader: asyncio.StreamReader, chunks_max: int | None = None) -> Exchange:
    """The next answer of a connection; with ``chunks_max`` no further than so many chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head[:-4].split(b"\r\n")
    headers = [
        (name.decode().lower(), value.strip().decode("latin-1"))
        for name, _, value in (line.partition(b":") for line in lines)
    ]
    known = dict(headers)
    if known.get("transfer-encoding") != "chunked":
        length = int(known.get("content-length", 0))
        body = await reader.read(length) if not length else await reader.readexactly(length)
        return Exchange(status, headers, body, None, True)
    chunks: list[bytes] = []
    try:
        while chunks_max is None or len(chunks) < chunks_max:
            size = int((await reader.readuntil(b"\r\n")), 16)
            data = await reader.readexactly(size + 2)
            if not size:
                return Exchange(status, headers, b"".join(chunks), chunks, True)
            chunks.append(data[:-2])
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        return Exchange(status, headers, b"".join(chunks), chunks, False, error)
    return Exchange(status, headers, b"".join(chunks), chunks, False)


async def recorded(path: Path) -> Exchange:
    """A ``.resp`` file."""
    reader = asyncio.StreamReader()
    reader.feed_data(path.read_bytes())
    reader.feed_eof()
    return await read_exchange(reader)


async def ask(port: int, request: bytes) -> Exchange:
    """Send a request's bytes on a connection of its own and read the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await read_exchange(reader)
    finally:
        writer.close()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A JSON request's bytes; header names are given with underscores."""
    lines = [f"POST {path} HTTP/1.1", "Host: engine", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: engine\r\n\r\n".encode()


def samples(text: bytes) -> dict[str, float]:
    """Prometheus text to values by series."""
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, value in (line.rsplit(" ", 1) for line in lines)}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Series that changed, by how much."""
    changes = {series: value - before.get(series, 0.0) for series, value in after.items()}
    return {series: change for series, change in changes.items() if change}
