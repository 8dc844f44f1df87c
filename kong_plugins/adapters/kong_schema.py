"""Kong's schema language, as far as plugin and entity schemas of a decK file use it.

A schema has Kong's own shape: ``fields`` is a list of one-key maps from field name to attributes (``type``,
``required``, ``default``, ``one_of``, ``between``, ``gt``, ``match``, ``elements``, ``keys``, ``values``, ``fields``).
:func:`complete` gives back the value with defaults filled in, or every field error at once in Kong's words.
"""

from __future__ import annotations

import copy
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

Attributes = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class FieldError:
    """``path`` is dotted, list entries count from 1 as Kong counts (``config.budgets[1].limit``)."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SchemaError(ValueError):
    """The schema itself asks for something this reader does not know; the message names it."""


def complete(
    fields: Sequence[Mapping[str, Attributes]], value: object, path: str = "", checks: Sequence[Attributes] = ()
) -> tuple[dict[str, object], list[FieldError]]:
    """A record's value with defaults (unset fields stay absent) and what is wrong with it."""
    errors: list[FieldError] = []
    return _record(fields, checks, value, path, errors), errors


def field_map(fields: Sequence[Mapping[str, Attributes]]) -> Iterator[tuple[str, Attributes]]:
    """Name and attributes of each field, in the schema's order."""
    for entry in fields:
        yield from entry.items()


def _record(
    fields: Sequence[Mapping[str, Attributes]],
    checks: Sequence[Attributes],
    value: object,
    path: str,
    errors: list[FieldError],
) -> dict[str, object]:
    if not isinstance(value, Mapping):
        errors.append(FieldError(path, "expected a record"))
        return {}
    known = dict(field_map(fields))
    result: dict[str, object] = {}
    for name in value:
        if name not in known:
            errors.append(FieldError(_join(path, str(name)), "unknown field"))
    for name, attributes in known.items():
        given = value.get(name)
        if given is None:
            given = _missing(attributes)
        if given is None:
            if attributes.get("required"):
                errors.append(FieldError(_join(path, name), "required field missing"))
            continue
        result[name] = _value(attributes, given, _join(path, name), errors)
    for check in checks:
        message = _entity_check(check, result)
        if message:
            errors.append(FieldError(path, message))
    return result


def _missing(attributes: Attributes) -> object:
    if attributes.get("default") is not None:
        return copy.deepcopy(attributes["default"])
    # A record whose fields have defaults is there even when nobody wrote it.
    is_record = attributes.get("type") == "record" and attributes.get("required") is not False
    return {} if is_record and (attributes.get("required") or _has_default(attributes)) else None


def _has_default(attributes: Attributes) -> bool:
    for _, inner in field_map(_fields_of(attributes)):
        if inner.get("default") is not None or (inner.get("type") == "record" and _has_default(inner)):
            return True
    return False


def _value(attributes: Attributes, value: object, path: str, errors: list[FieldError]) -> object:
    kind = str(attributes.get("type", "any"))
    if not value and isinstance(value, list | tuple | Mapping):  # Lua has one empty table for both
        value = [] if kind in ("array", "set") else {} if kind in ("record", "map") else value
    if kind == "record":
        return _record(_fields_of(attributes), _checks_of(attributes), value, path, errors)
    if kind in ("array", "set"):
        if not isinstance(value, list):
            errors.append(FieldError(path, f"expected {'an array' if kind == 'array' else 'a set'}"))
            return value
        elements = _attributes(attributes, "elements")
        items = [_value(elements, item, f"{path}[{n}]", errors) for n, item in enumerate(value, 1)]
        if kind == "set":
            items = [item for n, item in enumerate(items) if item not in items[:n]]
        _constraints(attributes, items, path, errors)
        return items
    if kind == "map":
        if not isinstance(value, Mapping):
            errors.append(FieldError(path, "expected a map"))
            return value
        keys, values = _attributes(attributes, "keys"), _attributes(attributes, "values")
        mapped: dict[str, object] = {}
        for key, item in value.items():
            _value(keys, key, _join(path, str(key)), errors)
            mapped[str(key)] = _value(values, item, _join(path, str(key)), errors)
        _constraints(attributes, mapped, path, errors)
        return mapped
    message = _scalar(kind, value)
    if message:
        errors.append(FieldError(path, message))
        return value
    if kind == "integer" and isinstance(value, float):
        value = int(value)
    _constraints(attributes, value, path, errors)
    return value


def _scalar(kind: str, value: object) -> str | None:
    match kind:
        case "string" | "foreign":
            return None if isinstance(value, str) else "expected a string"
        case "boolean":
            return None if isinstance(value, bool) else "expected a boolean"
        case "integer":
            whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            return None if whole and value == int(value) else "expected an integer"  # type: ignore[call-overload]
        case "number":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return None if number else "expected a number"
        case "any" | "json":
            return None
    raise SchemaError(f"field type '{kind}' is not one this reader knows (string, boolean, integer, number, record, …)")


@cache
def lua_pattern(pattern: str) -> re.Pattern[str]:
    """A Lua pattern as a Python expression (classes, sets, quantifiers and anchors; no %b, %f or back references).

    Raises:
        SchemaError: the pattern uses one of those.
    """
    classes = {"a": "A-Za-z", "d": "0-9", "l": "a-z", "s": r"\s", "u": "A-Z", "w": "A-Za-z0-9", "x": "A-Fa-f0-9"}
    classes |= {"p": r"!-/:-@\[-`{-~", "c": r"\x00-\x1f\x7f"}
    out: list[str] = []
    in_set = False
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "%" and position + 1 < len(pattern):
            position += 1
            letter = pattern[position]
            if letter in "bf" or letter.isdigit() or (in_set and letter.isupper()):
                raise SchemaError(f"Lua pattern '{pattern}': %{letter} is not supported")
            inner = classes.get(letter.lower())
            if inner is None:
                out.append(re.escape(letter))
            elif in_set:
                out.append(inner)
            else:
                out.append(f"[{'' if letter.islower() else '^'}{inner}]")
        elif in_set:
            in_set = char != "]"
            out.append("\\[" if char == "[" else char)
        elif char == "[":
            in_set = True
            negated = pattern.startswith("[^", position)
            out.append("[^" if negated else "[")
            position += negated
        elif char == "-":
            out.append("*?")
        elif char == "$" and position + 1 == len(pattern):
            out.append(r"\Z")
        elif (char == "^" and position == 0) or char in ".*+?()":
            out.append(char)
        else:
            out.append(re.escape(char))
        position += 1
    return re.compile("".join(out), re.DOTALL)


# The attributes that constrain a value, in Kong's words. A string may not be empty unless `len_min: 0` says so.
def _constraints(attributes: Attributes, value: object, path: str, errors: list[FieldError]) -> None:
    if attributes.get("referenceable") and isinstance(value, str) and re.fullmatch(r"\{vault://.+\}", value):
        return
    for name, check in _CHECKS.items():
        expected = attributes.get(name)
        if name == "len_min" and expected is None and attributes.get("type") == "string":
            expected = 1
        if expected is not None:
            message = check(value, expected)
            if message:
                custom = attributes.get("err")
                errors.append(FieldError(path, custom if isinstance(custom, str) else message))
                return


def _between(value: object, expected: object) -> str | None:
    low, high = expected  # type: ignore[misc]
    return None if low <= value <= high else f"value should be between {low} and {high}"  # type: ignore[has-type]


def _one_of(value: object, expected: object) -> str | None:
    options: list[object] = list(expected)  # type: ignore[call-overload]
    return None if value in options else f"expected one of: {', '.join(str(option) for option in options)}"


def _not_one_of(value: object, expected: object) -> str | None:
    options: list[object] = list(expected)  # type: ignore[call-overload]
    return f"must not be one of: {', '.join(str(option) for option in options)}" if value in options else None


def _match(value: object, expected: object) -> str | None:
    return None if lua_pattern(str(expected)).search(str(value)) else f"invalid value: {value}"


def _match_none(value: object, expected: object) -> str | None:
    for entry in expected:  # type: ignore[attr-defined]
        if lua_pattern(str(entry["pattern"])).search(str(value)):
            return str(entry.get("err") or f"invalid value: {value}")
    return None


def _length(value: object) -> int:
    return len(value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else len(value)  # type: ignore[arg-type]


def _uuid(value: object, _: object) -> str | None:
    try:
        uuid.UUID(str(value))
    except ValueError:
        return "expected a valid UUID"
    return None


_CHECKS: Mapping[str, Callable[[object, object], str | None]] = {
    "eq": lambda value, expected: None if value == expected else f"value must be {expected}",
    "ne": lambda value, expected: None if value != expected else f"value must not be {expected}",
    "gt": lambda value, expected: None if value > expected else f"value must be greater than {expected}",  # type: ignore[operator]
    "between": _between,
    "len_eq": lambda value, n: None if _length(value) == n else f"length must be {n}",
    "len_min": lambda value, n: None if _length(value) >= n else f"length must be at least {n}",  # type: ignore[operator]
    "len_max": lambda value, n: None if _length(value) <= n else f"length must be at most {n}",  # type: ignore[operator]
    "one_of": _one_of,
    "not_one_of": _not_one_of,
    "match": _match,
    "not_match": lambda value, p: f"invalid value: {value}" if lua_pattern(str(p)).search(str(value)) else None,
    "match_none": _match_none,
    "starts_with": lambda value, p: None if str(value).startswith(str(p)) else f"should start with: {p}",
    "contains": lambda value, item: None if item in value else f"expected to contain: {item}",  # type: ignore[operator]
    "uuid": _uuid,
}


def _entity_check(check: Attributes, record: Mapping[str, object]) -> str | None:
    for name, argument in check.items():
        if name == "conditional":
            return _conditional(argument, record)
        names: list[str] = [str(field) for field in argument]  # type: ignore[attr-defined]
        quoted = ", ".join(f"'{field}'" for field in names)
        present = sum(_at(record, field) is not None for field in names)
        match name:
            case "at_least_one_of" if present == 0:
                return f"at least one of these fields must be non-empty: {quoted}"
            case "only_one_of" if present != 1:
                return f"exactly one of these fields must be non-empty: {quoted}"
            case "mutually_exclusive" if present > 1:
                return f"only one or none of these fields must be set: {quoted}"
            case "mutually_required" if present not in (0, len(names)):
                return f"all or none of these fields must be set: {quoted}"
            case "distinct" if present != len({repr(_at(record, field)) for field in names} - {"None"}):
                return f"values of these fields must be distinct: {quoted}"
            case "at_least_one_of" | "only_one_of" | "mutually_exclusive" | "mutually_required" | "distinct":
                return None
            case _:
                raise SchemaError(f"entity check '{name}' is not one this reader knows")
    return None


def _conditional(argument: object, record: Mapping[str, object]) -> str | None:
    assert isinstance(argument, Mapping)
    subject, target = str(argument["if_field"]), str(argument["then_field"])
    errors: list[FieldError] = []
    given = _at(record, subject)
    if given is None:
        return None
    _constraints(argument["if_match"], given, subject, errors)
    if errors:
        return None
    then = argument["then_match"]
    value = _at(record, target)
    if value is None:
        missing = bool(then.get("required"))
    else:
        _constraints(then, value, target, errors)
        missing = False
    return f"failed conditional validation given value of field '{subject}'" if missing or errors else None


def _at(record: Mapping[str, object], dotted: str) -> object:
    value: object = record
    for name in dotted.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _fields_of(attributes: Attributes) -> Sequence[Mapping[str, Attributes]]:
    fields = attributes.get("fields", ())
    return fields if isinstance(fields, list | tuple) else ()


def _checks_of(attributes: Attributes) -> Sequence[Attributes]:
    checks = attributes.get("entity_checks", ())
    return checks if isinstance(checks, list | tuple) else ()


def _attributes(attributes: Attributes, name: str) -> Attributes:
    inner = attributes.get(name, {})
    return inner if isinstance(inner, Mapping) else {}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
