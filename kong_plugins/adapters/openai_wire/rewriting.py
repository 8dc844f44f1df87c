"""One writing: the body the engine gets, encoded from what was read."""

from __future__ import annotations

import msgspec

from kong_plugins.adapters.openai_wire.fields import MAX_TOKENS, STREAM_OPTIONS
from kong_plugins.adapters.openai_wire.reading import Request

_encode = msgspec.json.Encoder().encode


def rewrite(
    request: Request,
    *,
    include_usage: bool = True,
    continuous: bool = True,
    cache_salt: str | None = None,
    max_tokens: int | None = None,
    priority: int | None = None,
) -> bytes:
    """The upstream body. Never the client's own bytes.

    ``include_usage`` and ``continuous`` ask a stream of chat or text completions for its final and its running usage;
    other shapes always carry it. ``cache_salt`` keeps the tenant's cached prefixes apart (the client's own is gone
    either way). ``max_tokens`` lowers the limit per choice, never raises it. ``priority`` is the engine's, lower first.
    """
    demand = request.demand
    fields: dict[str, object] = dict(request.fields)
    if demand.stream and demand.endpoint in STREAM_OPTIONS and (include_usage or continuous or request.stream_options):
        options: dict[str, object] = dict(request.stream_options)
        if include_usage:
            options["include_usage"] = True
        if continuous:
            options["continuous_usage_stats"] = True
        fields["stream_options"] = options
    if cache_salt is not None:
        fields["cache_salt"] = cache_salt
    if priority is not None:
        fields["priority"] = priority
    _limit(request, fields, max_tokens)
    return _encode(fields)


def _limit(request: Request, fields: dict[str, object], max_tokens: int | None) -> None:
    """Lower every limit the client set; where it set none, write ours, so that no engine's default applies."""
    names = MAX_TOKENS[request.demand.endpoint]
    limits = [limit for limit in (request.demand.max_tokens, max_tokens) if limit is not None]
    if not names or not limits:
        return
    limit = min(limits)
    given = [name for name in names if bytes(request.fields.get(name, b"null")) != b"null"]
    for name in given:
        fields[name] = min(limit, int(bytes(request.fields[name])))
    if not given:
        fields[names[0]] = limit
