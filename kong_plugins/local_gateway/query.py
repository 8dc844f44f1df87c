"""Query strings as OpenResty reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

Arguments = dict[str, str | bool | list[str | bool]]


def parse_query(query: bytes, limit: int = 100) -> Arguments:
    """Arguments by name: a flag without ``=`` is True, a name that comes twice has a list."""
    result: Arguments = {}
    for part in [part for part in query.split(b"&") if part][:limit]:
        name, equals, value = part.partition(b"=")
        key = _decode(name)
        item: str | bool = _decode(value) if equals else True
        before = result.get(key)
        if before is None:
            result[key] = item
        elif isinstance(before, list):
            before.append(item)
        else:
            result[key] = [before, item]
    return result


def encode_query(arguments: Mapping[str, object]) -> bytes:
    """A query string of these arguments, in their order; False leaves one out."""
    parts: list[str] = []
    for name, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                parts.append(_encode(name))
            elif item is not False:
                parts.append(f"{_encode(name)}={_encode(str(item))}")
    return "&".join(parts).encode()


def without_argument(query: bytes, name: str) -> bytes:
    """The query without one argument, the others written anew as Kong does: ``%20`` is ``+``, ``flag`` is ``flag=``."""
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    kept = [(_decode(key), _decode(value)) for key, _, value in pairs]
    return "&".join(f"{_plus(key)}={_plus(value)}" for key, value in kept if key != name).encode()


def _plus(value: str) -> str:
    return _encode(value).replace("%20", "+")


def _decode(value: bytes) -> str:
    return unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "surrogateescape")


def _encode(value: str) -> str:
    return quote_from_bytes(value.encode("utf-8", "surrogateescape"), safe="")
