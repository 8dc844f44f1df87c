"""Kong's schema language: defaults and errors as Kong words them."""

from __future__ import annotations

from typing import Any

import pytest

from kong_plugins.adapters.kong_schema import SchemaError, complete, lua_pattern


def errors(attributes: dict[str, Any], value: object) -> list[str]:
    return [str(error) for error in complete([{"f": attributes}], {"f": value}, "config")[1]]


def test_defaults_are_filled_in_as_kong_was_recorded_to() -> None:
    """Unset fields stay absent, empty arrays are there, a record whose fields have defaults appears by itself."""
    fields = [
        {"limit": {"type": "integer", "default": 100}},
        {"models": {"type": "array", "elements": {"type": "string"}, "default": []}},
        {"nested": {"type": "record", "fields": [{"a": {"type": "integer", "default": 1}}, {"b": {"type": "string"}}]}},
        {"unset": {"type": "string"}},
        {"limits": {"type": "map", "keys": {"type": "string"}, "values": {"type": "integer"}}},
    ]
    assert complete(fields, {}) == ({"limit": 100, "models": [], "nested": {"a": 1}}, [])
    assert complete(fields, {"nested": {"b": "x"}, "limit": 7.0})[0]["nested"] == {"a": 1, "b": "x"}
    first, second = complete(fields, {})[0], complete(fields, {})[0]
    assert first["models"] is not second["models"]


@pytest.mark.parametrize(
    ("attributes", "value", "message"),
    [
        ({"type": "integer", "required": True}, None, "config.f: required field missing"),
        ({"type": "integer"}, 1.5, "config.f: expected an integer"),
        ({"type": "integer"}, True, "config.f: expected an integer"),
        ({"type": "number"}, "1", "config.f: expected a number"),
        ({"type": "boolean"}, "yes", "config.f: expected a boolean"),
        ({"type": "string"}, 1, "config.f: expected a string"),
        ({"type": "string"}, "", "config.f: length must be at least 1"),
        ({"type": "string", "one_of": ["a", "b"]}, "c", "config.f: expected one of: a, b"),
        ({"type": "integer", "between": [1, 5]}, 6, "config.f: value should be between 1 and 5"),
        ({"type": "integer", "gt": 0}, 0, "config.f: value must be greater than 0"),
        ({"type": "string", "match": "^%d+$"}, "1x", "config.f: invalid value: 1x"),
        ({"type": "array", "elements": {"type": "integer"}}, [1, "x"], "config.f[2]: expected an integer"),
        ({"type": "array", "elements": {"type": "string"}}, "x", "config.f: expected an array"),
        (
            {"type": "map", "keys": {"type": "string"}, "values": {"type": "integer"}},
            {"a": "x"},
            "config.f.a: expected an integer",
        ),
        ({"type": "record", "fields": []}, {"x": 1}, "config.f.x: unknown field"),
        ({"type": "record", "fields": []}, "x", "config.f: expected a record"),
    ],
)
def test_an_error_reads_as_kongs(attributes: dict[str, Any], value: object, message: str) -> None:
    assert errors(attributes, value) == [message]


def test_an_unknown_field_is_named() -> None:
    assert [str(e) for e in complete([], {"lmit": 1}, "config")[1]] == ["config.lmit: unknown field"]


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        ({"at_least_one_of": ["a", "b"]}, {}, "at least one of these fields must be non-empty: 'a', 'b'"),
        ({"only_one_of": ["a", "b"]}, {"a": 1, "b": 1}, "exactly one of these fields must be non-empty: 'a', 'b'"),
        (
            {"mutually_exclusive": ["a", "b"]},
            {"a": 1, "b": 1},
            "only one or none of these fields must be set: 'a', 'b'",
        ),
        ({"mutually_required": ["a", "b"]}, {"a": 1}, "all or none of these fields must be set: 'a', 'b'"),
        (
            {
                "conditional": {
                    "if_field": "a",
                    "if_match": {"eq": 1},
                    "then_field": "b",
                    "then_match": {"required": True},
                }
            },
            {"a": 1},
            "failed conditional validation given value of field 'a'",
        ),
    ],
)
def test_entity_checks_hold_between_fields(check: dict[str, Any], value: dict[str, Any], message: str) -> None:
    fields = [{"a": {"type": "integer"}}, {"b": {"type": "integer"}}]
    assert [error.message for error in complete(fields, value, "config", [check])[1]] == [message]
    assert complete(fields, {"a": 1} if "mut" not in next(iter(check)) else {}, "config", [check])[
        1
    ] == [] or "cond" in str(check)


def test_what_this_reader_does_not_know_is_refused_loudly() -> None:
    with pytest.raises(SchemaError, match="field type 'function'"):
        complete([{"f": {"type": "function"}}], {"f": 1})
    with pytest.raises(SchemaError, match="entity check 'custom_entity_check'"):
        complete([], {}, "config", [{"custom_entity_check": []}])


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^[%w_%-]+$", "a-b_1", True),
        ("^[%w_%-]+$", "a b", False),
        ("%.json$", "x.json", True),
        ("%.json$", "xjson", False),
        ("^a.-b", "axxb", True),
        ("^[^%s]+$", "a b", False),
        ("$x", "a$x", True),
    ],
)
def test_lua_patterns_mean_what_they_mean_in_lua(pattern: str, text: str, matches: bool) -> None:
    assert (lua_pattern(pattern).search(text) is not None) is matches
