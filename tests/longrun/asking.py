"""An HTTP client that costs little and keeps the times: one request at a time on each kept connection."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
LIMIT = 1 << 20
WHOLE_S = 60.0


class Cut(Exception):  # noqa: N818  # reads as what it tells
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Answer:
    """``first_s``, ``whole_s``: from the request's first byte to the body's first and last. ``left``: by us."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    first_s: float = 0.0
    whole_s: float = 0.0
    left: bool = False


@dataclass
class Connections:
    """To one server. Kept ones are used again, as SDKs do it."""

    port: int
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b"", leave_after: int | None = None
    ) -> Answer:
        """``leave_after``: close the connection after so many events of a stream.

        Raises:
            Cut, OSError, TimeoutError: no whole answer came.
        """
        lines = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        reader, writer = await self._connection()
        kept = False
        try:
            async with asyncio.timeout(WHOLE_S):
                began = time.perf_counter()
                writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
                answer = await _read(reader, began, leave_after)
                kept = not answer.left and answer.headers.get("connection", "").lower() != "close"
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Cut from error
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return answer

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port, limit=LIMIT)


async def _read(reader: asyncio.StreamReader, began: float, leave_after: int | None) -> Answer:
    status, *lines = (await reader.readuntil(HEAD_END)).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    answer = Answer(int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs})
    if answer.headers.get("transfer-encoding") == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
            answer.first_s = answer.first_s or time.perf_counter() - began
            if leave_after is not None and body.count(b"data: ") >= leave_after:
                answer.left = True
                break
        else:
            await reader.readuntil(b"\r\n")
        answer.body = bytes(body)
    elif size := int(answer.headers.get("content-length", "0")):
        first = await reader.read(size)
        answer.first_s = time.perf_counter() - began
        answer.body = first + await reader.readexactly(size - len(first))
    answer.whole_s = time.perf_counter() - began
    return answer
