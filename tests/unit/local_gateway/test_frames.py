"""Frames to a plugin server are packed as Kong's packer packs them."""

from __future__ import annotations

import msgpack
import pytest

from kong_plugins.local_gateway.mp_rpc import Binary, pack_request


@pytest.mark.parametrize(
    ("length", "head"), [(31, b"\xbf"), (32, b"\xda\x00\x20"), (255, b"\xda\x00\xff"), (70000, b"\xdb")]
)
def test_strings_are_fixstr_str16_or_str32_never_str8(length: int, head: bytes) -> None:
    frame = pack_request(1, "plugin.Step", {"EventId": 1, "Data": "x" * length})
    start = frame.index(b"x" * length)
    assert frame[start - len(head) : start] == head if length < 70000 else frame[start - 5 : start - 4] == head


@pytest.mark.parametrize("length", [0, 255, 256, 65535, 65536])
def test_bodies_are_bin_and_come_back_as_bytes(length: int) -> None:
    body = bytes(range(256)) * (length // 256) + bytes(length % 256)
    frame = pack_request(300, "plugin.Step", {"EventId": 7, "Data": Binary(body)})
    assert msgpack.unpackb(frame, raw=False) == [0, 300, "plugin.Step", [{"EventId": 7, "Data": body}]]


def test_bytes_that_are_no_utf8_pass_through_a_string() -> None:
    frame = pack_request(1, "plugin.Step", {"EventId": 1, "Data": b"\xff\x80".decode("utf-8", "surrogateescape")})
    assert b"\xa2\xff\x80" in frame
