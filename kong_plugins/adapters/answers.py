"""Whole answers as the ledger keeps them for retries: one version byte, then zlib over MessagePack."""

from __future__ import annotations

import zlib

import msgpack

from kong_plugins.adapters.kong_request import WholeAnswer

VERSION = b"\x01"
# The fastest: a stream repeats itself so much that a higher one saves little, and the plugin server waits meanwhile.
LEVEL = 1
UNPACKED_MAX = 64 << 20  # far above any answer that is kept


class UnreadableAnswerError(ValueError):
    """Not an answer as this release packs them."""


def pack(answer: WholeAnswer) -> bytes:
    """Small enough to keep: a stream takes some twentieth of its length."""
    plain: bytes = msgpack.packb(
        (answer.status, answer.content_type, answer.body), use_bin_type=True, unicode_errors="surrogateescape"
    )
    return VERSION + zlib.compress(plain, LEVEL)


def unpack(data: bytes) -> WholeAnswer:
    """
    Raises:
        UnreadableAnswerError: of another release, or damaged.
    """
    if data[:1] != VERSION:
        raise UnreadableAnswerError(f"an answer of version {data[:1].hex() or 'none'}, not {VERSION.hex()}")
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data[1:], UNPACKED_MAX)
        if not inflate.eof:
            raise UnreadableAnswerError("cut short, or longer than any answer that is kept")
        status, content_type, body = msgpack.unpackb(plain, unicode_errors="surrogateescape")
    except (zlib.error, ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise UnreadableAnswerError(str(error)) from error
    if not (isinstance(status, int) and isinstance(content_type, str) and isinstance(body, bytes)):
        raise UnreadableAnswerError("its fields have other types")
    return WholeAnswer(status, content_type, body)
