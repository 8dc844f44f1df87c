"""The configuration schemas of all four plugins, in one language: Kong's, as plain data.

Those of the Lua plugins are Lua. What they say is kept beside this module as JSON (`make docs` writes it), so that a
check needs no Lua.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from kong_plugins.adapters.deck_check.json_schema import json_schema
from kong_plugins.billing_events.schema import SCHEMA as BILLING_EVENTS
from kong_plugins.token_quota.schema import SCHEMA as TOKEN_QUOTA

LUA_PLUGINS = ("usage-gate", "usage-tap")
PLUGINS = ("token-quota", "billing-events", *LUA_PLUGINS)
LUA_FIELDS = "lua_plugin_fields.json"

Fields = Sequence[Mapping[str, Mapping[str, object]]]
PYTHON_FIELDS: Mapping[str, Fields] = {"token-quota": TOKEN_QUOTA, "billing-events": BILLING_EVENTS}


def lua_fields(plugin: str) -> Fields:
    """A Lua plugin's configuration fields."""
    known: Mapping[str, Fields] = json.loads((files("kong_plugins.cli") / LUA_FIELDS).read_text())
    return known[plugin]


def schema_text(plugin: str) -> str:
    """The JSON Schema of a plugin's config."""
    return _dump(json_schema(plugin, PYTHON_FIELDS[plugin] if plugin in PYTHON_FIELDS else lua_fields(plugin)))


def generated(root: Path) -> dict[Path, str]:
    """What `make docs` writes below the source tree, by path. Needs lupa, which reads the Lua schemas."""
    from kong_plugins.local_gateway.lua_host import LuaHost

    host = LuaHost(root / "kong" / "plugins")
    lua = {name: host.fields(name) for name in LUA_PLUGINS}
    pages = {root / "kong_plugins" / "cli" / LUA_FIELDS: _dump(lua, sort_keys=True)}
    for name, fields in {**PYTHON_FIELDS, **lua}.items():
        pages[root / "kong" / "schemas" / f"{name}.json"] = _dump(json_schema(name, fields))
    return pages


def _dump(value: Any, *, sort_keys: bool = False) -> str:
    """``sort_keys``: for what Lua gives in no order."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n"
