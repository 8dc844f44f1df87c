"""Keeping secrets out of what is written about an exception."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

_URL_PASSWORD = re.compile(r"(://[^\s/@:]*):[^\s/@]+@")
_TEXT_MAX = 500


def secrets_of(fields: Sequence[Mapping[str, Any]], config: Any) -> Iterator[str]:
    """Values of every field that the schema marks ``encrypted`` or ``referenceable`` (Kong hands vault references over
    resolved, in clear)."""
    if not isinstance(config, Mapping):
        return
    for field in fields:
        for name, rule in field.items():
            value = config.get(name)
            if value is None:
                continue
            if rule.get("encrypted") or rule.get("referenceable"):
                yield from _texts(value)
                continue
            yield from _nested(rule, value)


def _nested(rule: Mapping[str, Any], value: Any) -> Iterator[str]:
    if rule.get("type") == "record":
        yield from secrets_of(rule.get("fields", ()), value)
    elif rule.get("type") in {"array", "set"} and isinstance(value, list):
        for item in value:
            yield from _nested_or_secret(rule.get("elements", {}), item)
    elif rule.get("type") == "map" and isinstance(value, Mapping):
        for item in value.values():
            yield from _nested_or_secret(rule.get("values", {}), item)


def _nested_or_secret(rule: Mapping[str, Any], value: Any) -> Iterator[str]:
    if rule.get("encrypted") or rule.get("referenceable"):
        yield from _texts(value)
    else:
        yield from _nested(rule, value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def redact(text: str, secrets: Sequence[str]) -> str:
    """``text`` without the secrets and without passwords in URLs."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _URL_PASSWORD.sub(r"\1:***@", text)


def message_of(error: BaseException, secrets: Sequence[str]) -> str:
    """``ValueError: text`` on one line, bounded, redacted."""
    text = redact(f"{type(error).__name__}: {error}", secrets)
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:_TEXT_MAX]


def place_of(error: BaseException) -> str:
    """``plugin.py:12 in access``: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "nowhere"


def story_of(error: BaseException, secrets: Sequence[str]) -> str:
    """Message and call stack on one line: files, lines and names, no values."""
    stack = " < ".join(
        f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(traceback.extract_tb(error.__traceback__))
    )
    return f"{message_of(error, secrets)} ({stack})"
