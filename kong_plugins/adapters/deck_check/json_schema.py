"""A plugin's configuration schema, from Kong's language into JSON Schema, for editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kong_plugins.adapters.kong_schema import Attributes, field_map, lua_pattern

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = r"^\{vault://.+\}$"
_TYPES = {"string": "string", "boolean": "boolean", "integer": "integer", "number": "number"}


def json_schema(plugin: str, fields: Sequence[Mapping[str, Attributes]]) -> dict[str, Any]:
    """Of a row's ``config``."""
    return {
        "$schema": DRAFT,
        "$id": f"urn:kong-token-quota:config:{plugin}",
        "title": f"config of {plugin}",
        **_record(fields),
    }


def _record(fields: Sequence[Mapping[str, Attributes]]) -> dict[str, Any]:
    known: dict[str, Mapping[str, Any]] = dict(field_map(fields))
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _field(attributes) for name, attributes in known.items()},
    }
    required = [name for name, field in known.items() if field.get("required") and "default" not in field]
    return schema | ({"required": required} if required else {})


def _field(field: Mapping[str, Any]) -> dict[str, Any]:
    schema = _kind(field)
    for name in ("description", "default"):
        if name in field:
            schema[name] = field[name]
    if schema.get("default") == {} and schema.get("type") == "array":
        schema["default"] = []  # Lua has one empty table for both
    if field.get("referenceable"):
        about: dict[str, Any] = {name: schema.pop(name) for name in ("description", "default") if name in schema}
        return {**about, "anyOf": [{"type": "string", "pattern": _REFERENCE}, schema]}
    return schema


def _kind(field: Mapping[str, Any]) -> dict[str, Any]:
    kind = field.get("type")
    if kind == "record":
        return _record(field.get("fields", ()))
    if kind in {"array", "set"}:
        schema: dict[str, Any] = {"type": "array", "items": _field(field.get("elements", {}))}
        if kind == "set":
            schema["uniqueItems"] = True
        if "len_max" in field:
            schema["maxItems"] = field["len_max"]
        return schema
    if kind == "map":
        return {
            "type": "object",
            "propertyNames": _field(field.get("keys", {})),
            "additionalProperties": _field(field.get("values", {})),
        }
    schema = {"type": _TYPES[str(kind)]} if kind in _TYPES else {}
    if "one_of" in field:
        schema["enum"] = list(field["one_of"])
    if "between" in field:
        schema["minimum"], schema["maximum"] = field["between"]
    if kind == "string":
        schema["minLength"] = field.get("len_min", 1)
        if "len_max" in field:
            schema["maxLength"] = field["len_max"]
    if isinstance(field.get("match"), str):
        # Lua's and ours mean the same by the letters that our schemas use.
        schema["pattern"] = lua_pattern(field["match"]).pattern.replace(r"\Z", "$")
    return schema
