"""``kong.log.serialize()``: one finished request as Kong's log plugins see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kong_plugins.adapters.deck_entities import WORKSPACE_ID, Consumer, DeckConfig, Route, Service
from kong_plugins.local_gateway.exchange import Exchange, Try
from kong_plugins.local_gateway.headers import text
from kong_plugins.local_gateway.query import parse_query

_SECRET = ("authorization", "proxy-authorization")
LOGGED_HEADERS = 100  # OpenResty's get_headers without an argument


def serialize(exchange: Exchange) -> str:
    """The record as JSON text; call it when the request has ended."""
    request_headers = exchange.headers.as_map(LOGGED_HEADERS)
    for name in _SECRET:
        if name in request_headers:
            request_headers[name] = "REDACTED"
    target = text(exchange.target)
    record: dict[str, Any] = {
        "request": {
            "id": exchange.id,
            "uri": target,
            "url": f"http://{exchange.host}:{exchange.server_port}{target}",
            "querystring": parse_query(exchange.original_query),
            "method": exchange.method,
            "headers": request_headers,
            # nginx counts a body it never read as not received.
            "size": exchange.request_size if exchange.body_read else exchange.head_size,
        },
        "upstream_uri": _upstream_uri(exchange),
        "upstream_status": exchange.upstream_status or "",
        "response": {
            "status": exchange.status,
            "headers": exchange.response_headers.as_map(LOGGED_HEADERS),
            "size": exchange.bytes_sent,
        },
        "latencies": {
            "kong": exchange.latencies.kong,
            "proxy": exchange.latencies.proxy,
            "request": exchange.latencies.request,
            "receive": exchange.latencies.receive,
        },
        "tries": [_try(attempt) for attempt in exchange.tries],
        "client_ip": exchange.client[0],
        "started_at": exchange.started_ms,
        "source": "upstream" if exchange.source == "service" else "kong",
        "workspace": WORKSPACE_ID,
        "workspace_name": "default",
    }
    if exchange.credential is not None:
        record["authenticated_entity"] = {"id": exchange.credential["id"]}
    if exchange.route is not None:
        record["route"] = exchange.entity(exchange.route.id)
    if exchange.service is not None:
        record["service"] = exchange.entity(exchange.service.id)
    if exchange.consumer is not None:
        record["consumer"] = exchange.consumer
    for key, value, mode in exchange.serialize_values:
        _edit(record, key, value, mode)
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False)


def entities(config: DeckConfig, loaded_at: int) -> dict[str, Mapping[str, Any]]:
    """Services, routes and consumers by id, as Kong shows them. ``loaded_at`` in seconds since the epoch."""
    stamps = {"created_at": loaded_at, "updated_at": loaded_at}
    shown: dict[str, Mapping[str, Any]] = {}
    for service in config.services:
        shown[service.id] = {**_fields(service), **stamps, "ws_id": WORKSPACE_ID}
    for route in config.routes:
        owner = {"service": {"id": route.service_id}} if route.service_id else {}
        shown[route.id] = {**_fields(route, without=("service_id",)), **owner, **stamps, "ws_id": WORKSPACE_ID}
    for consumer in config.consumers:
        shown[consumer.id] = {**_fields(consumer), **stamps}
    return shown


def _fields(entity: Service | Route | Consumer, without: tuple[str, ...] = ()) -> dict[str, Any]:
    # Kong leaves out what is not set; an empty list was not set either.
    values = {name: getattr(entity, name) for name in entity.__slots__ if name not in without}
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in shown.items() if value is not None and value not in ([], {})}


def _try(attempt: Try) -> dict[str, Any]:
    start_ms = attempt.start_ns // 1_000_000
    shown: dict[str, Any] = {
        "ip": attempt.ip,
        "port": attempt.port,
        "balancer_start": start_ms,
        "balancer_start_ns": float(attempt.start_ns),
        "balancer_latency": attempt.latency_ns // 1_000_000,
        "balancer_latency_ns": attempt.latency_ns,
    }
    if attempt.failed_code is not None:
        shown |= {"state": "failed", "code": attempt.failed_code}
    return shown


def _upstream_uri(exchange: Exchange) -> str:
    if exchange.match is None:
        return ""
    path = text(exchange.upstream_path)
    return f"{path}?{text(exchange.query)}" if exchange.query or exchange.target.endswith(b"?") else path


def _edit(record: dict[str, Any], key: str, value: object, mode: str) -> None:
    *parents, last = key.split(".")
    node = record
    for name in parents:
        if name not in node and mode == "replace":
            return
        inner = node.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        node = inner
    if mode == "set" or (mode == "add") == (last not in node):
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
