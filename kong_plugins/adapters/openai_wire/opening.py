"""What a request's prompt begins with: which cached prefix it could find, and whether that is a public one."""

from __future__ import annotations

import msgspec

from kong_plugins.adapters.openai_wire.reading import Request
from kong_plugins.adapters.openai_wire.strict_json import Fields, kind, read_fields, read_list, read_text
from kong_plugins.domain.demand import Endpoint

_SYSTEM = frozenset({"system", "developer"})
_MESSAGES = {Endpoint.CHAT: "messages", Endpoint.MESSAGES: "messages", Endpoint.RESPONSES: "input"}
_SYSTEM_FIELD = {Endpoint.MESSAGES: "system", Endpoint.RESPONSES: "instructions"}

LEADING = 16  # messages before the first of a user: no sensible prompt has more
# A prompt without messages grows at its end: of a continued one only the beginning is there again.
PLAIN_BYTES = 512


def opening(request: Request) -> tuple[bytes, ...]:
    """What stays the same from one turn of a conversation to the next: tools, system prompt, everything up to the first
    user's message. JSON as the client wrote it. Empty where an engine has nothing to find again."""
    endpoint, fields = request.demand.endpoint, request.fields
    if endpoint is Endpoint.EMBEDDINGS:
        return ()
    if endpoint is Endpoint.COMPLETIONS:
        return (bytes(fields["prompt"])[:PLAIN_BYTES],)
    parts = [bytes(fields[name]) for name in ("tools", _SYSTEM_FIELD.get(endpoint, "")) if name in fields]
    messages = fields[_MESSAGES[endpoint]]
    if kind(messages) == '"':
        return (*parts, bytes(messages))
    for raw in read_list(messages)[:LEADING]:
        message = read_fields(raw)
        role = _role(message)
        parts += [role.encode("utf-8", "surrogatepass"), bytes(message.get("content", b""))]
        if role == "user":
            break
    return tuple(parts)


def system_prompt(request: Request) -> str | None:
    """The text that the prompt begins with, where it is one text that a system prompt is made of."""
    endpoint, fields = request.demand.endpoint, request.fields
    if "tools" in fields or endpoint not in _MESSAGES:  # templates print tools first
        return None
    name = _SYSTEM_FIELD.get(endpoint)
    if name is not None:
        return _text(fields.get(name))
    messages = fields[_MESSAGES[endpoint]]
    first = read_fields(read_list(messages)[0])
    return _text(first.get("content")) if _role(first) in _SYSTEM else None


def _role(message: Fields) -> str:
    role = message.get("role")
    return read_text(role) if role is not None and kind(role) == '"' else ""


def _text(raw: msgspec.Raw | None) -> str | None:
    return read_text(raw) if raw is not None and kind(raw) == '"' else None
