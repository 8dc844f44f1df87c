"""Kong plugin schemas (a ``schema.lua``, or an external plugin's dump) put to a configuration: defaults, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NUMBERS = ("number", "integer")


class ConfigError(Exception):
    """A plugin's configuration does not fit its schema. The text names every field, as Kong's does."""

    def __init__(self, plugin: str, errors: Sequence[str]) -> None:
        super().__init__(f"plugin {plugin}: " + "; ".join(errors))
        self.errors = tuple(errors)


def with_defaults(
    plugin: str, fields: Sequence[Mapping[str, Mapping[str, Any]]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """``config`` with the defaults of ``fields`` (Kong's form: a list of one-entry maps).

    Raises:
        ConfigError: unknown field, missing required field, wrong type or value out of bounds.
    """
    errors: list[str] = []
    result = _record("config", fields, config, errors)
    if errors:
        raise ConfigError(plugin, errors)
    return result


def _record(path: str, fields: Any, value: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    known: dict[str, Mapping[str, Any]] = {name: spec for field in fields for name, spec in field.items()}
    errors.extend(f"{path}.{name}: unknown field" for name in value if name not in known)
    result: dict[str, Any] = {}
    for name, spec in known.items():
        given = value.get(name)
        if given is None:
            given = spec.get("default")
        if given is None and spec.get("type") == "record" and spec.get("required"):
            given = {}
        if given is None:
            if spec.get("required"):
                errors.append(f"{path}.{name}: required field missing")
            continue
        result[name] = _value(f"{path}.{name}", spec, given, errors)
    return result


def _value(path: str, spec: Mapping[str, Any], value: Any, errors: list[str]) -> Any:
    kind = spec.get("type", "string")
    if isinstance(value, (list, tuple, Mapping)) and not value:  # Lua has one empty table for both
        value = {} if kind in ("record", "map") else []
    if kind == "record":
        if not isinstance(value, Mapping):
            errors.append(f"{path}: expected a record")
            return value
        return _record(path, spec["fields"], value, errors)
    if kind in ("array", "set"):
        if not isinstance(value, (list, tuple)):
            errors.append(f"{path}: expected {'an array' if kind == 'array' else 'a set'}")
            return value
        return [_value(f"{path}[{i}]", spec["elements"], item, errors) for i, item in enumerate(value, 1)]
    if kind == "map":
        if not isinstance(value, Mapping):
            errors.append(f"{path}: expected a map")
            return value
        return {key: _value(f"{path}.{key}", spec["values"], item, errors) for key, item in value.items()}
    problem = _scalar_problem(kind, spec, value)
    if problem:
        errors.append(f"{path}: {problem}")
    return value


def _scalar_problem(kind: str, spec: Mapping[str, Any], value: Any) -> str | None:
    if kind == "boolean":
        return None if isinstance(value, bool) else "expected a boolean"
    if kind in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"expected {'an integer' if kind == 'integer' else 'a number'}"
        if kind == "integer" and value != int(value):
            return "expected an integer"
        between = spec.get("between")
        if between and not between[0] <= value <= between[1]:
            return f"value should be between {between[0]} and {between[1]}"
        if "gt" in spec and not value > spec["gt"]:
            return f"value must be greater than {spec['gt']}"
    elif not isinstance(value, str):
        return "expected a string"
    elif not value and spec.get("len_min") != 0:
        return "length must be at least 1"
    one_of = spec.get("one_of")
    if one_of and value not in one_of:
        return "expected one of: " + ", ".join(map(str, one_of))
    return None
