"""One strict reading of a request: its demand on the engine, and all that writing it anew needs."""

from __future__ import annotations

from dataclasses import dataclass

from kong_plugins.adapters.openai_wire.content import Prompt, read_prompt
from kong_plugins.adapters.openai_wire.fields import (
    COMPLETIONS_MAX_TOKENS,
    DROPPED,
    MAX_TOKENS,
    REFUSED,
    STREAM_OPTIONS,
)
from kong_plugins.adapters.openai_wire.rules import WireRules
from kong_plugins.adapters.openai_wire.strict_json import (
    INT_MAX,
    Fields,
    boolean,
    is_null,
    kind,
    positive,
    read_fields,
    read_object,
    read_text,
)
from kong_plugins.domain.demand import Demand, Endpoint
from kong_plugins.domain.errors import BadRequest

_MAX_TOKENS_UNKNOWN_CONTEXT = 2**24  # longer than any context; keeps weighted bounds well inside 2^53
_MODEL_BYTES_MAX = 256  # Longer than any name served; it ends up in keys, events and metrics.


@dataclass(frozen=True, slots=True)
class Request:
    """A request as read. ``fields`` holds what may be forwarded, in the client's order and spelling."""

    demand: Demand
    fields: Fields
    prompt: Prompt
    stream_options: Fields


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """
    Raises:
        BadRequest: 415, when the body is not plain JSON in UTF-8.
    """
    if content_encoding is not None and content_encoding.strip().lower() not in {"", "identity"}:
        raise BadRequest(
            415, "unsupported_encoding", "Compressed request bodies cannot be metered; send the body without encoding."
        )
    media_type, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
    charsets = [value.strip(" \"'") for name, _, value in (p.partition("=") for p in parameters) if name == "charset"]
    if media_type != "application/json" or any(charset not in {"utf-8", "utf8"} for charset in charsets):
        raise BadRequest(415, "unsupported_media_type", "Send the body as `Content-Type: application/json` in UTF-8.")


def parse(endpoint: Endpoint, body: bytes, rules: WireRules) -> Request:
    """
    Raises:
        BadRequest: with the field to change.
    """
    fields = read_object(body, rules.max_depth)
    _check_refused(endpoint, fields, rules)
    model = _read_model(fields)
    stream = boolean(fields, "stream")
    options = _read_stream_options(endpoint, fields, stream)
    prompt = read_prompt(endpoint, fields, rules)
    for name in DROPPED:
        fields.pop(name, None)
    demand = Demand(
        endpoint=endpoint,
        model=model,
        stream=stream,
        wants_usage=endpoint not in STREAM_OPTIONS or not stream or boolean(options, "include_usage"),
        prompt_bound=_prompt_bound(endpoint, fields, len(body), prompt, rules),
        max_tokens=_read_max_tokens(endpoint, fields, rules),
        choices=_read_choices(endpoint, fields, prompt.prompts, rules),
        prompts=prompt.prompts,
    )
    return Request(demand, fields, prompt, options)


def _check_refused(endpoint: Endpoint, fields: Fields, rules: WireRules) -> None:
    for name, reason in REFUSED[endpoint].items():
        if name in fields and name not in rules.allow and bytes(fields[name]) not in {b"null", b"false"}:
            raise BadRequest(400, "unsupported_field", f"`{name}` {reason}; leave it out.", name)


def _read_model(fields: Fields) -> str:
    raw = fields.get("model")
    if raw is None or is_null(raw):
        raise BadRequest(400, "missing_field", "`model` is required.", "model")
    if kind(raw) != '"':
        raise BadRequest(400, "invalid_type", "`model` must be a string.", "model")
    model = read_text(raw)
    if not model or len(model.encode()) > _MODEL_BYTES_MAX or not model.isprintable():
        raise BadRequest(
            400, "invalid_value", f"`model` must be a name of 1 to {_MODEL_BYTES_MAX} printable bytes.", "model"
        )
    return model


def _read_stream_options(endpoint: Endpoint, fields: Fields, stream: bool) -> Fields:
    raw = fields.pop("stream_options", None)
    if raw is None or is_null(raw):
        return {}
    if kind(raw) != "{":
        raise BadRequest(400, "invalid_type", "`stream_options` must be an object.", "stream_options")
    options = read_fields(raw)
    for name in ("include_usage", "continuous_usage_stats"):
        boolean(options, name, f"stream_options.{name}")
    if options and (not stream or endpoint not in STREAM_OPTIONS):
        message = "`stream_options` is only for streams (`stream: true`) of chat or text completions."
        raise BadRequest(400, "invalid_value", message, "stream_options")
    return options


def _read_max_tokens(endpoint: Endpoint, fields: Fields, rules: WireRules) -> int | None:
    names = MAX_TOKENS[endpoint]
    most = INT_MAX if rules.context_tokens is not None else _MAX_TOKENS_UNKNOWN_CONTEXT
    limits = [limit for name in names if (limit := positive(fields, name, most)) is not None]
    if limits:
        return max(limits)
    if endpoint is Endpoint.MESSAGES:
        raise BadRequest(400, "missing_field", "`max_tokens` is required.", "max_tokens")
    if endpoint is Endpoint.COMPLETIONS:
        return rules.default_max_tokens or COMPLETIONS_MAX_TOKENS
    if names and rules.default_max_tokens is None and rules.context_tokens is None:
        raise BadRequest(
            400, "missing_field", f"`{names[0]}` is required: this route has no default that would bound it.", names[0]
        )
    return rules.default_max_tokens if names else None


def _read_choices(endpoint: Endpoint, fields: Fields, prompts: int, rules: WireRules) -> int:
    if endpoint is Endpoint.EMBEDDINGS:
        return 0
    if endpoint not in STREAM_OPTIONS:  # /responses and /messages answer once
        return 1
    n = positive(fields, "n", rules.max_choices) or 1
    best_of = positive(fields, "best_of", rules.max_choices) or 1
    return max(n, best_of) * prompts


def _prompt_bound(endpoint: Endpoint, fields: Fields, size: int, prompt: Prompt, rules: WireRules) -> int:
    """Every byte of the body as a token, what may be printed larger than it was sent, and what the template adds."""
    if rules.context_tokens is not None and any(name in fields for name in rules.allow & REFUSED[endpoint].keys()):
        return rules.context_tokens * prompt.prompts
    allowance = rules.allowance
    bound = size - prompt.media_bytes + prompt.media + prompt.printed + prompt.calls * allowance.message
    if prompt.plain:
        bound += prompt.plain * allowance.prompt
    else:
        bound += allowance.request + len(prompt.roles) * allowance.message_max
    if rules.context_tokens is not None:
        bound = min(bound, rules.context_tokens * prompt.prompts)
    return bound
