"""``python -m kong_plugins.token_quota.reference``: the configuration reference, from the schema, in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kong_plugins.adapters.kong_schema import field_map
from kong_plugins.token_quota.schema import SCHEMA

HEADER = ("| field | type | default | meaning |", "|---|---|---|---|")


def markdown(schema: Sequence[Mapping[str, Any]] = SCHEMA) -> str:
    """A Markdown table with a row for each field; fields of records in lists are named ``budgets[].limit``."""
    return "\n".join([*HEADER, *_rows(schema, "")]) + "\n"


def _rows(schema: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[str]:
    for name, attributes in field_map(schema):
        field: Mapping[str, Any] = attributes
        path = f"{prefix}{name}"
        default = "required" if field.get("required") else _code(field["default"]) if "default" in field else "-"
        description = str(field["description"]).replace("|", "\\|")
        yield f"| `{path}` | {_type(field)} | {default} | {description} |"
        elements = field.get("elements", {})
        if elements.get("type") == "record":
            yield from _rows(elements["fields"], f"{path}[].")


def _type(field: Mapping[str, Any]) -> str:
    if "one_of" in field:
        return ", ".join(f"`{option}`" for option in field["one_of"])
    text = str(field["type"])
    if text in ("array", "set"):
        return f"{text} of {_type(field['elements'])}"
    if text == "map":
        return f"map to {_type(field['values'])}"
    if "between" in field:
        low, high = field["between"]
        return f"{text}, {low} to {high}"
    return text


def _code(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
