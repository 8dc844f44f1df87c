"""Records of Kong's log serializer (http-log, file-log) as requests that ended.

A record carries the tap's table where usage-tap publishes it (``usage_tap``, docs/interfaces.md, without ``text``), and
Kong's ai-proxy puts its own counts under ``ai``. Nothing else of a record is read: it may hold keys and bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from kong_plugins.adapters.kong_request import TAP, read_tap
from kong_plugins.domain.events import CLIENT_CLOSED, FIRST_ERROR, Admitted, Ending, known_usage, usage_seen
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import Evidence, Usage

SOURCE = "kong-http-log"
REFUSALS = frozenset({401, 403, 429})
_SOURCES = {"upstream": "service", "kong": "exit"}  # Kong's word in records, and in its PDK


class Skipped(StrEnum):
    """Why a record makes no event."""

    MALFORMED = "malformed"
    NO_CONSUMER = "no_consumer"
    NOT_ASKED = "not_asked"  # Kong answered by itself and refused nothing (a replay, a preflight): nobody used anything
    USAGE_UNKNOWN = "usage_unknown"  # an admitted request that somebody else settles, or whose hold ends by itself


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that a plugin of ours admitted: to be settled as its log phase does."""

    admitted: Admitted
    ending: Ending


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that no plugin of ours admitted: to be recorded."""

    admitted: Admitted
    ending: Ending
    usage: Usage
    evidence: Evidence
    outcome: Outcome


def read_record(record: object) -> Ended | Seen | Skipped:
    """What one record says. An admitted request whose usage the record does not tell is skipped, never booked at zero:
    whoever knows better settles it, and else its hold ends by itself."""
    if not isinstance(record, dict):
        return Skipped.MALFORMED
    table = record.get(TAP)
    if isinstance(table, dict) and table.get("admitted") is True:  # what the tap says of it without `log_usage`
        return Skipped.USAGE_UNKNOWN
    tap = read_tap(table)
    if tap is not None and tap[0] is not None:
        admitted, ending = tap[0], tap[1]
        return Ended(admitted, ending) if known_usage(ending) is not None else Skipped.USAGE_UNKNOWN

    request, response = _map(record, "request"), _map(record, "response")
    request_id = _text(request, "id")
    started_ms = _count(record, "started_at")
    if not request_id or started_ms is None:
        return Skipped.MALFORMED
    tenant = _consumer(_map(record, "consumer"))
    if tenant is None:
        return Skipped.NO_CONSUMER
    model, usage = _ai(_map(record, "ai"))
    admitted = Admitted(
        hold_id=request_id,
        tenant=tenant,
        model=model,
        source=SOURCE,
        prompt_bound=0,
        completion_bound=0,
        consumer=tenant,
        service=_name(_map(record, "service")),
        route=_name(_map(record, "route")),
    )
    latencies = _map(record, "latencies")
    ending = Ending(
        usage=usage,
        evidence=Evidence.EXACT if usage is not None else None,
        ended=True,
        status=_count(response, "status") or 0,
        upstream_status=_text(record, "upstream_status") or None,
        source=_SOURCES.get(_text(record, "source") or ""),
        started_ms=started_ms,
        last_ms=started_ms + (_count(latencies, "request") or 0),
        proxy_ms=_count(latencies, "proxy"),
    )
    if tap is not None:  # a route that is only billed: no decision of ours, but a tap that read the usage
        ours = tap[1].evidence is not None or usage is None
        ending = tap[1] if ours else replace(tap[1], usage=usage, evidence=ending.evidence)
    known, evidence = usage_seen(ending)
    denied = ending.source == "exit" and ending.status in REFUSALS
    if ending.source == "exit" and not ending.upstream_status and ending.usage is None:
        denied = ending.status >= FIRST_ERROR and ending.status != CLIENT_CLOSED
        if not denied:
            return Skipped.NOT_ASKED
    return Seen(admitted, ending, known, evidence, Outcome.DENIED if denied else ending.outcome())


def _ai(plugins: Mapping[object, object]) -> tuple[str, Usage | None]:
    """Model and usage by Kong's AI plugins: each that called a model has its own; ai-proxy's model is the one named."""
    model, prompt, completion, known = "", 0, 0, False
    for name in sorted(plugins, key=lambda name: name not in {"proxy", "ai-proxy"}):
        entry = plugins[name]
        if not isinstance(entry, dict):
            continue
        usage, meta = _map(entry, "usage"), _map(entry, "meta")
        model = model or _text(meta, "response_model") or _text(meta, "request_model") or ""
        counts = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if counts != (None, None):
            known = True
            prompt, completion = prompt + (counts[0] or 0), completion + (counts[1] or 0)
    return model, Usage(prompt, completion) if known else None


def _consumer(table: Mapping[object, object]) -> str | None:
    """As kong_request names a consumer, so that it is the tenant whom the plugins charge."""
    username, custom_id, consumer_id = (_text(table, name) for name in ("username", "custom_id", "id"))
    if username or not consumer_id:
        return username
    return f"custom_id:{custom_id}" if custom_id else f"id:{consumer_id}"


def _name(table: Mapping[object, object]) -> str | None:
    return _text(table, "name") or _text(table, "id")


def _map(table: Mapping[object, object], name: str) -> Mapping[object, object]:
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def _text(table: Mapping[object, object], name: str) -> str | None:
    value = table.get(name)
    return value if isinstance(value, str) else None


def _count(table: Mapping[object, object], name: str) -> int | None:
    """Never negative (Kong's -1 is "unknown"); Lua writes large integers as floats."""
    value = table.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
