"""The part of Redis' protocol (RESP 2) that scripts need: requests out, simple and bulk replies in."""

from __future__ import annotations

from collections.abc import Iterable


class ServerError(Exception):
    """The server's error reply. ``code`` is its first word, ``NOSCRIPT`` say."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class ProtocolError(Exception):
    """What came is not RESP, or not the part of it we ask for."""


def encode(parts: Iterable[bytes | str | int]) -> bytes:
    """One request."""
    lines = [b""]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        lines += (b"$%d" % len(data), data)
    lines[0] = b"*%d" % (len(lines) // 2)
    lines.append(b"")
    return b"\r\n".join(lines)


class Replies:
    """Cuts a byte stream into replies: ``bytes``, ``int``, ``None`` or a ``ServerError`` (returned, not raised)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """The replies that ``data`` completes.

        Raises:
            ProtocolError: the stream makes no sense; nothing after it can be trusted.
        """
        buffer = self._buffer
        buffer += data
        replies: list[object] = []
        start = 0
        while (line_end := buffer.find(b"\r\n", start)) >= 0:
            kind, line = buffer[start : start + 1], bytes(buffer[start + 1 : line_end])
            end = line_end + 2
            if kind == b"$":
                size = _integer(line)
                if size < 0:
                    replies.append(None)
                elif len(buffer) < end + size + 2:
                    break
                else:
                    replies.append(bytes(buffer[end : end + size]))
                    end += size + 2
            elif kind == b"+":
                replies.append(line)
            elif kind == b"-":
                replies.append(ServerError(line.decode("utf-8", "replace")))
            elif kind == b":":
                replies.append(_integer(line))
            else:
                raise ProtocolError(f"a reply that starts with {bytes(kind)!r}")
            start = end
        del buffer[:start]
        return replies


def _integer(line: bytes) -> int:
    try:
        return int(line)
    except ValueError as error:
        raise ProtocolError(f"{line[:32]!r} where a number belongs") from error
