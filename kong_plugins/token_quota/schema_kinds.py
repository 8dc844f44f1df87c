"""Kinds of fields in Kong's schema language."""

from __future__ import annotations

from collections.abc import Mapping

Field = dict[str, object]
Schema = list[dict[str, Field]]

NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def text(description: str, **attributes: object) -> Field:
    return {"type": "string", "description": description, **attributes}


def choice(description: str, *options: str, default: str | None = None) -> Field:
    chosen: Field = {"type": "string", "one_of": list(options), "description": description}
    if default is not None:
        chosen["default"] = default
    return chosen


def integer(description: str, low: int, high: int, **attributes: object) -> Field:
    return {"type": "integer", "between": [low, high], "description": description, **attributes}


def array(description: str, elements: Mapping[str, object], **attributes: object) -> Field:
    return {"type": "array", "elements": dict(elements), "description": description, **attributes}


def distinct(description: str, elements: Mapping[str, object], **attributes: object) -> Field:
    return {"type": "set", "elements": dict(elements), "description": description, **attributes}


def mapping(description: str, values: Mapping[str, object]) -> Field:
    keys = {"type": "string", "len_min": 1}
    return {"type": "map", "keys": keys, "values": dict(values), "description": description}
