"""The JSON Schemas of our events: one file for each kind and version, found by the event's ``dataschema``."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

KINDS = ("request", "reversal", "adjustment")
VERSION = 1


@cache
def schema_text(kind: str, version: int = VERSION) -> str:
    """The file, as it is.

    Raises:
        ValueError: there is no such kind or version.
    """
    file = files("kong_plugins") / "event_schemas" / f"{kind}.v{version}.json"
    if kind not in KINDS or not file.is_file():
        raise ValueError(
            f"no schema of {kind!r} events, version {version}: there are {', '.join(KINDS)}, version {VERSION}"
        )
    return file.read_text("utf-8")


@cache
def schemas() -> MappingProxyType[str, dict[str, Any]]:
    """Every schema by its URN, which is what an event names in ``dataschema``."""
    every = [json.loads(schema_text(kind)) for kind in KINDS]
    return MappingProxyType({schema["$id"]: schema for schema in every})
