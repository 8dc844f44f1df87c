"""JSON objects read so strictly that no other parser can read them differently."""

from __future__ import annotations

import re
from typing import NoReturn

import msgspec

from kong_plugins.domain.errors import BadRequest

Fields = dict[str, msgspec.Raw]

FIELDS_MAX = 256  # several times as many as any of these shapes has
INT_MAX = 2**31 - 1  # what engines keep token counts in

_NAME_SHOWN_MAX = 64  # longer ones are no field of ours, and an answer does not grow with the request

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode

_NAME = re.compile(rb'[ \t\n\r]*"(?:[^"\\]|\\.)*"[ \t\n\r]*:[ \t\n\r]*')
_AFTER_VALUE = re.compile(rb"[ \t\n\r]*([,}])")
_POSITIVE = re.compile(rb"[1-9][0-9]{0,9}")
_INTEGER = re.compile(rb"-?[0-9]+")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACKETS = bytes.maketrans(b"{}", b"[]")


def read_object(body: bytes, max_depth: int) -> Fields:
    """The body's fields, their values as raw JSON.

    Raises:
        BadRequest: empty, not UTF-8, not one JSON object, a field given twice, nested deeper than ``max_depth``.
    """
    if not body:
        raise BadRequest(400, "empty_body", "The request has no body; send a JSON object.")
    if not body.isascii():
        _check_utf8(body)
    try:
        fields = _decode_fields(body)
    except RecursionError:
        _too_deep(max_depth)
    except msgspec.ValidationError:
        raise BadRequest(400, "invalid_json", "The request body must be a JSON object.") from None
    except msgspec.DecodeError as error:
        raise BadRequest(400, "invalid_json", f"The request body is not valid JSON: {error}.") from None
    if len(fields) > FIELDS_MAX:
        raise BadRequest(400, "too_many_fields", f"The request body has more than {FIELDS_MAX} fields.")
    if _depth_exceeds(body, max_depth):
        _too_deep(max_depth)
    _check_names(body, fields)
    return fields


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            400, "invalid_utf8", f"The request body must be UTF-8; byte {error.start} is not ({error.reason})."
        ) from None


def _check_names(body: bytes, fields: Fields) -> None:
    """A field given twice is one our decoder would take last and another parser first.

    The decoder kept one value for each name, in order of first appearance. Walking the body with those values in hand
    comes out at the closing brace exactly when no name appeared twice.
    """
    at = body.index(b"{") + 1
    for name, raw in fields.items():
        value = bytes(raw)
        head = _NAME.match(body, at)
        after = None
        if head is not None and body.startswith(value, head.end()):
            after = _AFTER_VALUE.match(body, head.end() + len(value))
        if after is None:
            _repeated(name)
        at = after.end()
    if fields and body[at - 1] != 0x7D:  # }
        _repeated(None)


def _repeated(name: str | None) -> NoReturn:
    name = name if name is None or len(name) <= _NAME_SHOWN_MAX else None
    raise BadRequest(400, "duplicate_field", "The request body gives a field twice; send each field once.", name)


def _depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether arrays and objects of valid JSON nest deeper than ``limit``."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    # Without escapes every quote opens or closes a string, so every second piece lies outside of strings.
    pieces = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    brackets = b"".join(pieces[::2]).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # takes away the innermost level
    return bool(brackets)


def _too_deep(limit: int) -> NoReturn:
    raise BadRequest(400, "nested_too_deep", f"The request body is nested deeper than {limit} levels.")


def is_null(raw: msgspec.Raw | None) -> bool:
    """Absent and null mean the same on these wires."""
    return raw is None or bytes(raw) == b"null"


def kind(raw: msgspec.Raw) -> str:
    """``"`` string, ``[`` array, ``{`` object, ``t`` / ``f`` boolean, ``n`` null, ``0`` number."""
    first = chr(memoryview(raw)[0])
    return "0" if first in "-0123456789" else first


def read_list(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The elements of an array."""
    return _decode_list(raw)


def read_fields(raw: msgspec.Raw) -> Fields:
    """The fields of an object; of a name given twice the last, as every engine of ours reads it."""
    return _decode_fields(raw)


def read_text(raw: msgspec.Raw) -> str:
    """A string's text."""
    return _decode_text(raw)


def positive(fields: Fields, name: str, limit: int = INT_MAX) -> int | None:
    """A JSON integer of 1 to ``limit``; None when absent or null. ``1.0``, ``1e3``, ``"1"`` and ``true`` are none."""
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    text = bytes(raw)
    if _POSITIVE.fullmatch(text) and int(text) <= limit:
        return int(text)
    if _INTEGER.fullmatch(text):
        wrong = "at least 1" if text.startswith(b"-") or not text.strip(b"0") else f"at most {limit}"
        raise BadRequest(400, "invalid_value", f"`{name}` must be {wrong}.", name)
    raise BadRequest(400, "invalid_type", f"`{name}` must be an integer (written without fraction or exponent).", name)


def boolean(fields: Fields, name: str, param: str | None = None) -> bool:
    """true or false; False when absent or null."""
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return False
    text = bytes(raw)
    if text not in {b"true", b"false"}:
        raise BadRequest(400, "invalid_type", f"`{param or name}` must be true or false.", param or name)
    return text == b"true"
