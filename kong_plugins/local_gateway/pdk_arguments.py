"""Arguments of PDK calls as Kong's Lua takes them, and what it throws at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kong_plugins.local_gateway.headers import flat, raw, text
from kong_plugins.local_gateway.serialize import LOGGED_HEADERS


class PdkError(Exception):
    """Lua would throw here: a 500 in access, a lost event in log."""


class NoSuchMethod(Exception):  # noqa: N818 - an answer, not a failure
    """No such function; Kong logs it and answers nothing."""


def shown(value: object) -> str:
    if isinstance(value, bytes):
        return text(value)
    if value is None:
        return "nil"
    return str(value).lower() if isinstance(value, bool) else str(value)


def string_of(value: object, what: str) -> str:
    if isinstance(value, bytes):
        return text(value)
    if not isinstance(value, str):
        raise PdkError(f"{what} must be a string")
    return value


def limit_of(value: object) -> int:
    if value is None:
        return LOGGED_HEADERS
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1000:
        raise PdkError("max must be a number between 1 and 1000")
    return int(value)


def multimap(values: Mapping[str, Any]) -> dict[str, Any]:
    """Kong's ``fix_mmap``: every value a list, a flag an empty one."""
    return {
        name: [] if value is True else [value] if isinstance(value, str) else value for name, value in values.items()
    }


def header_value(value: object) -> bytes:
    if not isinstance(value, str | bytes | int | float):
        raise PdkError(
            f"invalid header value: got {type(value).__name__}, expected array of string, string, number or boolean"
        )
    return raw(value)


def table_of(value: object) -> Mapping[Any, Any]:
    if isinstance(value, dict):
        return value
    if value == []:
        return {}
    raise PdkError("expected a table")


def status_of(value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 599:
        raise PdkError(f"code must be a number between {low} and 599")
    return int(value)


def exit_headers(headers: object) -> list[tuple[bytes, bytes]]:
    result: list[tuple[bytes, bytes]] = []
    for name, values in flat(table_of(headers)) if headers is not None else ():
        if name.lower() != b"transfer-encoding":
            result += [(name, value) for value in ([values] if isinstance(values, bytes) else values)]
    return result
