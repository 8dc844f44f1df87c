"""Values between Python and Lua, with the conversions Kong's MessagePack makes on the way to a plugin server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lupa.luajit21 import LuaRuntime, lua_type

_EXACT = 2**53  # from here on a Lua number (a double) is packed as a float


def to_lua(lua: LuaRuntime, value: object) -> Any:
    """A Python value as Lua sees it after Kong unpacked it: ``str`` and ``bytes`` become strings, ``None`` inside a
    table vanishes, integers beyond 2^53 lose their last digits.

    Raises:
        TypeError: the value has no MessagePack form.
    """
    if value is None or isinstance(value, (bool, bytes)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, int):
        return value if abs(value) < _EXACT else float(value)
    if isinstance(value, float):
        return value
    if isinstance(value, Mapping):
        table = lua.table()
        for key, item in value.items():
            if item is not None:
                table[to_lua(lua, key)] = to_lua(lua, item)
        return table
    if isinstance(value, (list, tuple)):
        table = lua.table()
        for index, item in enumerate(value, 1):
            if item is not None:
                table[index] = to_lua(lua, item)
        return table
    raise TypeError(
        f"{type(value).__name__} cannot be handed to Lua: use None, bool, int, float, str, bytes, list or dict"
    )


def from_lua(value: Any) -> Any:
    """A Lua value as a Python plugin gets it: strings as ``str`` (surrogateescape), ``{}`` as ``[]``, a table with the
    keys 1..n as a list, any other as a dict (also ``[1, None, 3]``: integer keys), integral floats as integers.

    Raises:
        TypeError: the value (a function, userdata) cannot be packed; Kong's request would fail there.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):  # lupa gives every integral double as one
        return value if abs(value) < _EXACT else float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if lua_type(value) != "table":
        raise TypeError(f"a Lua {lua_type(value)} cannot be packed as MessagePack")
    items = {from_lua(key): from_lua(item) for key, item in value.items()}
    if all(isinstance(key, int) and key > 0 for key in items) and max(items, default=0) == len(items):
        return [items[index] for index in range(1, len(items) + 1)]
    return items
