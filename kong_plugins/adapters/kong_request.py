"""Tables of ``kong.ctx.shared`` as records: the gate's request, our decision, the tap's ending (docs/interfaces.md).

Kong turns an empty table into a list and leaves out what is nil, so every reader takes what it finds: a field of
another type than agreed counts as absent, never as an error.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from kong_plugins.adapters.registration_codec import decode_registration, encode_registration
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.demand import Demand
from kong_plugins.domain.events import Admitted, Ending
from kong_plugins.domain.holds import DecidedBy, Registration
from kong_plugins.domain.usage import Evidence, Usage

_log = logging.getLogger(__name__)

GATE = "usage_gate"
DECISION = "token_quota"
TAP = "usage_tap"
ANSWER = "usage_tap_answer"
VERSION = 1

_EVIDENCE = {each.value: each for each in Evidence}
_BY = {each.value: each for each in DecidedBy}
_KEPT = {each.value: each for each in AnswerKept}


@dataclass(frozen=True, slots=True)
class Entity:
    """A consumer, service or route. ``name`` is what an operator calls it."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class GateRequest:
    """The request as ``usage-gate`` read it."""

    id: str
    method: str
    path: str
    content_type: str | None
    content_encoding: str | None
    accept: str | None
    body: bytes
    refused: str | None
    consumer: Entity | None
    credential: str | None  # the key's fingerprint
    ip: str | None
    service: Entity | None
    route: Entity | None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None  # the header's value as sent; of several, the first
    idempotency_keys: int = 0  # how many such headers came, where it is more than one
    retry_count: str | None = None  # as an SDK sent it
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer as its client got it."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class About:
    """Whom a request is from that token-quota did not let through: refused by somebody, or on a route without it.
    ``request_id`` is Kong's, ``credential`` the key's fingerprint, ``model`` as asked for."""

    request_id: str
    consumer: Entity | None
    credential: str | None
    service: Entity | None
    route: Entity | None
    model: str | None
    headers: Mapping[str, str]
    claims: Mapping[str, str]


def read_gate(table: object) -> GateRequest | None:
    """None when there is no gate's table of a version we know."""
    if not isinstance(table, dict) or table.get("v") != VERSION:
        return None
    request_id = _text(table, "id")
    method, path = _text(table, "method"), _text(table, "path")
    if request_id is None or method is None or path is None:
        return None
    return GateRequest(
        id=request_id,
        method=method,
        path=path,
        content_type=_text(table, "type"),
        content_encoding=_text(table, "encoding"),
        accept=_text(table, "accept"),
        body=_bytes(table, "body"),
        refused=_text(table, "refused"),
        consumer=_consumer(table.get("consumer")),
        credential=_text(_map(table, "credential"), "hash"),
        ip=_text(table, "ip"),
        service=_entity(table.get("service"), "name"),
        route=_entity(table.get("route"), "name"),
        headers=_texts(table, "headers"),
        claims=_texts(table, "claims"),
        idempotency_key=_text(table, "idempotency_key"),
        idempotency_keys=_int(table, "idempotency_keys") or 0,
        retry_count=_text(table, "retry_count"),
    )


def write_decision(
    admitted: Admitted,
    demand: Demand,
    body: bytes,
    upstream: Mapping[str, str],
    response: Mapping[str, str],
    *,
    keep: int | None = None,
) -> dict[str, object]:
    """The decision for an admitted request. ``keep``: bytes of its answer to keep for retries, at most."""
    meter: dict[str, object] = {
        "endpoint": demand.endpoint.value,
        "stream": demand.stream,
        "hide_usage": demand.stream and not demand.wants_usage,
    }
    if demand.prompts > 1:
        meter["choices_per_prompt"] = demand.choices // demand.prompts
    if keep is not None:
        meter["keep"] = keep
    return {
        "v": VERSION,
        "allow": True,
        "body": body,
        "upstream": dict(upstream),
        "response": dict(response),
        "meter": meter,
        "log": _write_admitted(admitted),
    }


def write_unmetered() -> dict[str, object]:
    """The decision for a path that the operator lets through unmetered."""
    return {"v": VERSION, "allow": True}


def read_tap(table: object) -> tuple[Admitted | None, Ending] | None:
    """What the tap saw, and whom we admitted; None without a tap's table of a version we know."""
    if not isinstance(table, dict) or table.get("v") != VERSION:
        return None
    evidence = _text(table, "evidence")
    ending = Ending(
        endpoint=_text(table, "endpoint"),
        stream=table.get("stream") is True,
        usage=_usage(table.get("usage")),
        evidence=_EVIDENCE.get(evidence or ""),
        text=_text(table, "text"),
        text_bytes=_int(table, "text_bytes") or 0,
        finish=_text(table, "finish"),
        error=table.get("error") is True,
        ended=table.get("ended") is True,
        engine_id=_text(table, "engine_id"),
        status=_int(table, "status") or 0,
        upstream_status=_text(table, "upstream_status"),
        source=_text(table, "source"),
        started_ms=_int(table, "started_ms") or 0,
        first_ms=_int(table, "first_ms"),
        last_ms=_int(table, "last_ms"),
        proxy_ms=_int(table, "proxy_ms"),
    )
    return _read_admitted(table.get("log")), ending


def read_about(tap: object) -> About | None:
    """None where token-quota let the request through, or its path is no metered one."""
    if not isinstance(tap, dict):
        return None
    request_id, about = _text(tap, "request_id"), tap.get("about")
    if request_id is None or not isinstance(about, dict):
        return None
    return About(
        request_id=request_id,
        consumer=_consumer(about.get("consumer")),
        credential=_text(about, "credential"),
        service=_entity(about.get("service"), "name"),
        route=_entity(about.get("route"), "name"),
        model=_text(about, "model"),
        headers=_texts(about, "headers"),
        claims=_texts(about, "claims"),
    )


def answer_kept(tap: object) -> AnswerKept:
    """Whether there is an answer to fetch under ``ANSWER``, by what the tap's table says."""
    return _KEPT.get((_text(tap, "answer") if isinstance(tap, dict) else None) or "", AnswerKept.NONE)


def read_answer(table: object) -> WholeAnswer | None:
    """None without an answer's table of a version we know."""
    if not isinstance(table, dict) or table.get("v") != VERSION:
        return None
    status = _int(table, "status")
    return WholeAnswer(status, _text(table, "type") or "", _bytes(table, "body")) if status else None


def _write_admitted(admitted: Admitted) -> dict[str, object]:
    log: dict[str, object] = {
        "hold": admitted.hold_id,
        "tenant": admitted.tenant,
        "model": admitted.model,
        "source": admitted.source,
        "bound": [admitted.prompt_bound, admitted.completion_bound],
        "credential": admitted.credential,
        "consumer": admitted.consumer,
        "service": admitted.service,
        "route": admitted.route,
        "budgets": list(admitted.budgets),
        "over": list(admitted.over),
        # A list, not a map: a key that a header names must never stand where Kong looks for `_method`.
        "attributes": [[name, value] for name, value in admitted.attributes.items()],
    }
    if admitted.choices > 1:
        log["choices"] = admitted.choices
    if admitted.retriable:
        log["retriable"] = True
    if admitted.by is not DecidedBy.LEDGER:
        log["by"] = admitted.by.value
    if admitted.registration is not None:
        # As text: in a log record it is part of a JSON document.
        log["registration"] = b64encode(encode_registration(admitted.registration)).decode()
    return {name: value for name, value in log.items() if value not in (None, [])}


def _read_admitted(table: object) -> Admitted | None:
    if not isinstance(table, dict):
        return None
    hold_id, tenant, model = _text(table, "hold"), _text(table, "tenant"), _text(table, "model")
    if hold_id is None or tenant is None or model is None:
        return None
    bound = [each for each in _list(table, "bound") if isinstance(each, int)]
    prompt_bound, completion_bound = bound if len(bound) == 2 else (0, 0)
    return Admitted(
        hold_id=hold_id,
        tenant=tenant,
        model=model,
        source=_text(table, "source") or "",
        prompt_bound=prompt_bound,
        completion_bound=completion_bound,
        credential=_text(table, "credential"),
        consumer=_text(table, "consumer"),
        service=_text(table, "service"),
        route=_text(table, "route"),
        budgets=tuple(each for each in _list(table, "budgets") if isinstance(each, str)),
        over=tuple(each for each in _list(table, "over") if isinstance(each, str)),
        attributes={str(pair[0]): str(pair[1]) for pair in _pairs(table, "attributes")},
        choices=_int(table, "choices") or 1,
        retriable=table.get("retriable") is True,
        by=_BY.get(_text(table, "by") or "", DecidedBy.LEDGER),
        registration=_registration(_text(table, "registration")),
    )


def _registration(packed: str | None) -> Registration | None:
    """One that cannot be read is told of, and its request settled as one that the ledger has forgotten."""
    if packed is None:
        return None
    try:
        return decode_registration(b64decode(packed, validate=True))
    except ValueError as error:
        _log.error("a request that was admitted without the ledger is charged to no budget: %s", error)
        return None


def _usage(table: object) -> Usage | None:
    """The engine's figures; its subsets are cut to their wholes rather than losing a whole usage to one odd field."""
    if not isinstance(table, dict):
        return None
    prompt, completion = _int(table, "prompt"), _int(table, "completion")
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    cached, reasoning = _int(table, "cached") or 0, _int(table, "reasoning") or 0
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _entity(value: object, *names: str) -> Entity | None:
    if not isinstance(value, dict):
        return None
    entity_id = _text(value, "id")
    if entity_id is None:
        return None
    return Entity(entity_id, next((name for key in names if (name := _text(value, key))), entity_id))


def _consumer(value: object) -> Entity | None:
    """Kong keeps usernames apart from one another, and custom ids, but not the ones from the others."""
    consumer = _entity(value, "username")
    if consumer is None or not isinstance(value, dict) or _text(value, "username"):
        return consumer
    custom_id = _text(value, "custom_id")
    return Entity(consumer.id, f"custom_id:{custom_id}" if custom_id else f"id:{consumer.id}")


def _pairs(table: Mapping[object, object], name: str) -> list[list[object]]:
    return [each for each in _list(table, name) if isinstance(each, list) and len(each) == 2]


def _map(table: Mapping[object, object], name: str) -> Mapping[object, object]:
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def _texts(table: Mapping[object, object], name: str) -> dict[str, str]:
    return {key: value for key, value in _map(table, name).items() if isinstance(key, str) and isinstance(value, str)}


def _list(table: Mapping[object, object], name: str) -> list[object]:
    value = table.get(name)
    return list(value) if isinstance(value, list | tuple) else []


def _text(table: Mapping[object, object], name: str) -> str | None:
    """Bytes that are no UTF-8 stay apart as lone surrogates."""
    value = table.get(name)
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else None


def _bytes(table: Mapping[object, object], name: str) -> bytes:
    value = table.get(name)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return value if isinstance(value, bytes) else b""


def _int(table: Mapping[object, object], name: str) -> int | None:
    """A count. Never negative; integral floats are integers that Lua made large."""
    value = table.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
