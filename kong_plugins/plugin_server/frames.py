"""Frames of MsgPack:1 as Kong's Lua client packs and reads them.

Request ``[0, msgid, method, [argument]]``, response ``[1, msgid, error | nil, result]``, notification
``[2, label, argument]``. Strings from Kong are bytes of the client's choosing: ``surrogateescape`` carries them in and
out unharmed. Lua's sparse lists arrive as maps with integer keys.
"""

from __future__ import annotations

from typing import Any

import msgpack

REQUEST = 0
RESPONSE = 1
# A byte MessagePack never uses. Kong's reader throws on it and the request ends with a 500, where a connection closed
# without an answer would let the request go on without the plugin.
BROKEN = b"\xc1"

_FRAME_MAX = 100 << 20
_BUFFER = 16 << 10  # what a connection holds at first; msgpack's default is 1 MiB for each

UNDECODABLE = (ValueError, msgpack.exceptions.UnpackException)

_pack = msgpack.Packer(unicode_errors="surrogateescape").pack

GIVEN_UP: bytes = _pack((2, "givenUp", None))  # the label is ours: Kong knows serverPid only


def unpacker() -> Any:
    """A streaming decoder: ``feed(bytes)``, then iterate over the complete frames.

    Raises:
        UNDECODABLE: the bytes are no MessagePack, nested too deeply, or a frame of more than 100 MiB.
    """
    return msgpack.Unpacker(
        raw=False, strict_map_key=False, unicode_errors="surrogateescape", read_size=_BUFFER, max_buffer_size=_FRAME_MAX
    )


def request(msgid: int, method: object, argument: object) -> bytes:
    """What Kong sends."""
    frame: bytes = _pack((REQUEST, msgid, method, (argument,)))
    return frame


def response(msgid: int, result: object) -> bytes:
    """The answer to a request.

    Raises:
        TypeError, ValueError, OverflowError: the result holds something MessagePack cannot carry.
    """
    frame: bytes = _pack((RESPONSE, msgid, None, result))
    return frame


def error(msgid: int, text: str) -> bytes:
    """The refusal of a request. Kong expects a string, logs it, and treats "no plugin instance" in it specially."""
    frame: bytes = _pack((RESPONSE, msgid, text, None))
    return frame


def server_pid(pid: int) -> bytes:
    """The notification that makes Kong forget its instances when the number differs from the last one it saw."""
    frame: bytes = _pack((2, "serverPid", pid))
    return frame
