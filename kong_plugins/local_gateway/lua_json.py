"""Values and JSON as Kong's Lua has them, where it differs from Python's."""

from __future__ import annotations

import json
from typing import Any

_EXACT = 2**53


def lua_value(value: Any) -> Any:
    """A decoded JSON value as Kong packs it for a plugin: ``{}`` is ``[]``, numbers are doubles."""
    if isinstance(value, dict):
        return {key: lua_value(item) for key, item in value.items()} or []
    if isinstance(value, list):
        return [lua_value(item) for item in value]
    return _number(value)


def lua_json(value: Any) -> bytes:
    """A value from a plugin as cjson writes it: None vanishes, an empty table is ``{}``, integral floats are integers.

    Raises:
        ValueError: a number cjson refuses (NaN, infinity).
    """
    text = json.dumps(_table(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogateescape")


def _table(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _table(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_table(item) for item in value if item is not None] or {}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return float(value) if abs(value) >= _EXACT else value


def _key(key: Any) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)
