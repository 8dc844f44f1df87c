"""Kong's PDK as plugin servers can call it: names, arguments and answers as recorded from Kong 3.9.1.

A name nobody knows answers nothing and is logged; a call Kong's Lua would throw at (wrong argument, wrong phase) ends
the event. Functions of Kong that no plugin here uses are unknown to this stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from kong_plugins.local_gateway.errors import Exit, error_exit
from kong_plugins.local_gateway.exchange import Exchange
from kong_plugins.local_gateway.exits import bodiless_exit
from kong_plugins.local_gateway.headers import raw, text
from kong_plugins.local_gateway.logs import Log
from kong_plugins.local_gateway.lua_json import lua_json, lua_value
from kong_plugins.local_gateway.mp_rpc import Binary
from kong_plugins.local_gateway.pdk_arguments import (
    NoSuchMethod,
    PdkError,
    exit_headers,
    header_value,
    limit_of,
    multimap,
    shown,
    status_of,
    string_of,
    table_of,
)
from kong_plugins.local_gateway.query import encode_query, parse_query
from kong_plugins.local_gateway.serialize import LOGGED_HEADERS, serialize

if TYPE_CHECKING:
    from kong_plugins.local_gateway.plugin_rows import Row

# The largest body recorded to come through get_raw_body() without an argument: beyond it nginx uses a file.
BODY_BUFFER_BYTES = 10241

STEP_METHODS: Mapping[str, str] = {
    "kong.client.get_credential": "plugin.StepCredential",
    "kong.client.load_consumer": "plugin.StepConsumer",
    "kong.client.get_consumer": "plugin.StepConsumer",
    "kong.client.authenticate": "plugin.StepCredential",
    "kong.node.get_memory_stats": "plugin.StepMemoryStats",
    "kong.router.get_route": "plugin.StepRoute",
    "kong.router.get_service": "plugin.StepService",
    "kong.request.get_query": "plugin.StepMultiMap",
    "kong.request.get_headers": "plugin.StepMultiMap",
    "kong.response.get_headers": "plugin.StepMultiMap",
    "kong.service.response.get_headers": "plugin.StepMultiMap",
}


class Pdk:
    """The PDK for one event of one plugin. ``phase`` is ``access`` or ``log``."""

    def __init__(self, exchange: Exchange, phase: str, row: Row, *, node_id: str, log: Log) -> None:
        self.exchange = exchange
        self.phase = phase
        self.plugin = row.plugin
        self.row_id = row.id
        self.node_id = node_id
        self.log = log

    def call(self, method: str, arguments: object) -> Any:
        """One function's first result; an Exit when it ends the request.

        Raises:
            NoSuchMethod: as said there.
            PdkError: as said there.
        """
        forbidden = _NOT_IN_LOG if self.phase == "log" else _LOG_ONLY
        if method in forbidden or method.startswith(_CHANGES if self.phase == "log" else "kong.service.response."):
            raise PdkError(f"function '{method}' cannot be called in {self.phase} phase")
        function = _FUNCTIONS.get(method)
        if function is None:
            level = method.removeprefix("kong.log.")
            if method == "kong.log" or level in _LOG_LEVELS:
                return self._write("notice" if method == "kong.log" else level, arguments)
            raise NoSuchMethod(method)
        listed = list(arguments) if isinstance(arguments, list | tuple) else [arguments]
        listed += [None] * (3 - len(listed))
        try:
            return function(self, *listed[:3])
        except (TypeError, ValueError) as error:
            raise PdkError(f"{method}: {error}") from error

    def _write(self, level: str, arguments: object) -> None:
        parts = arguments if isinstance(arguments, list) else [arguments]
        self.log.write(level, f"[{self.plugin}] " + "".join(shown(part) for part in parts), self.exchange)


_LOG_LEVELS = ("debug", "info", "notice", "warn", "err", "crit", "alert", "emerg", "inspect")
_CHANGES = ("kong.service.", "kong.response.set", "kong.response.add", "kong.response.clear", "kong.response.e")
_LOG_ONLY = (
    "kong.log.serialize",
    "kong.response.get_status",
    "kong.response.get_header",
    "kong.response.get_headers",
    "kong.response.get_source",
    "kong.response.get_raw_body",
)
_NOT_IN_LOG = (
    "kong.request.get_method",
    "kong.request.get_scheme",
    "kong.request.get_host",
    "kong.request.get_port",
    "kong.request.get_http_version",
    "kong.request.get_path",
    "kong.request.get_raw_path",
    "kong.request.get_path_with_query",
    "kong.request.get_raw_query",
    "kong.request.get_query",
    "kong.request.get_query_arg",
    "kong.request.get_raw_body",
    "kong.request.get_body",
    "kong.request.get_forwarded_host",
    "kong.request.get_forwarded_path",
    "kong.nginx.get_var",
    "kong.client.get_ip",
    "kong.client.get_forwarded_ip",
    "kong.client.get_port",
    "kong.client.get_forwarded_port",
    "kong.client.get_protocol",
)


# kong.request


def _request_headers(pdk: Pdk, limit: object, *_: object) -> object:
    return multimap(pdk.exchange.headers.as_map(LOGGED_HEADERS if pdk.phase == "log" else limit_of(limit)))


def _request_header(pdk: Pdk, name: object, *_: object) -> object:
    wanted = string_of(name, "header name").lower().replace("_", "-")
    headers = pdk.exchange.headers.as_map(LOGGED_HEADERS if pdk.phase == "log" else 1000)
    for found, value in headers.items():
        if found.replace("_", "-") == wanted:
            return value[0] if isinstance(value, list) else value
    return None


def _query(pdk: Pdk, limit: object, *_: object) -> object:
    return multimap(parse_query(pdk.exchange.original_query, limit_of(limit)))


def _query_arg(pdk: Pdk, name: object, *_: object) -> object:
    value = parse_query(pdk.exchange.original_query).get(string_of(name, "query argument name"))
    return value[0] if isinstance(value, list) else value


def _raw_body(pdk: Pdk, limit: object, *_: object) -> object:
    pdk.exchange.body_read = True
    body = pdk.exchange.body
    if len(body) > BODY_BUFFER_BYTES:
        if limit is None or not isinstance(limit, int | float) or limit < 0:
            raise PdkError(
                "request body did not fit into client body buffer, consider raising 'client_body_buffer_size'"
            )
        if 0 < limit < len(body):
            raise PdkError(f"request body file too big: {len(body)} > {limit:g}")
    return Binary(body)


def _body(pdk: Pdk, *_: object) -> object:
    exchange = pdk.exchange
    exchange.body_read = True
    kind = text(exchange.headers.get(b"content-type") or b"").lower()
    if len(exchange.body) > BODY_BUFFER_BYTES or not exchange.body:
        return None
    if kind.startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(text(exchange.body), keep_blank_values=True))
    if not kind.startswith("application/json"):
        return None
    try:
        value = json.loads(exchange.body)
    except ValueError:
        return None
    return lua_value(value) if isinstance(value, dict | list) else None


def _captures(pdk: Pdk, *_: object) -> object:
    match = pdk.exchange.match
    named = dict(match.named) if match else {}
    unnamed = [value for value in match.unnamed if value is not None] if match else []
    return {"named": named or [], "unnamed": unnamed}


def _path_with_query(pdk: Pdk, *_: object) -> object:
    return text(pdk.exchange.target)


# kong.service.request, kong.response


def _set_header(pdk: Pdk, name: object, value: object, *_: object) -> None:
    header = raw(string_of(name, "header"))
    if isinstance(value, list):
        pdk.exchange.clear_header(header)
        for item in value:
            pdk.exchange.add_header(header, header_value(item))
    else:
        pdk.exchange.set_header(header, header_value(value))


def _add_header(pdk: Pdk, name: object, value: object, *_: object) -> None:
    pdk.exchange.add_header(raw(string_of(name, "header")), header_value(value))


def _set_headers(pdk: Pdk, headers: object, *_: object) -> None:
    for name, value in table_of(headers).items():
        _set_header(pdk, name, value)


def _clear_header(pdk: Pdk, name: object, *_: object) -> None:
    pdk.exchange.clear_header(raw(string_of(name, "header")))


def _set_raw_body(pdk: Pdk, body: object, *_: object) -> None:
    pdk.exchange.set_body(raw(string_of(body, "body")))


def _set_body(pdk: Pdk, arguments: object, *_: object) -> bool:
    pdk.exchange.set_body(lua_json(table_of(arguments)))
    pdk.exchange.set_header(b"Content-Type", b"application/json")
    return True


def _set_query(pdk: Pdk, arguments: object, *_: object) -> None:
    pdk.exchange.set_query(encode_query({shown(name): value for name, value in table_of(arguments).items()}))


def _set_raw_query(pdk: Pdk, query: object, *_: object) -> None:
    pdk.exchange.set_query(raw(string_of(query, "query")))


def _set_path(pdk: Pdk, path: object, *_: object) -> None:
    wanted = string_of(path, "path")
    if not wanted.startswith("/"):
        raise PdkError("path must start with /")
    pdk.exchange.set_upstream_path(raw(wanted))


def _response_header(pdk: Pdk, name: object, value: object, *_: object) -> None:
    if not isinstance(value, str | bytes | int | float | list):
        raise PdkError("invalid header value")
    pdk.exchange.set_response_header(raw(string_of(name, "header")), value)


def _response_headers(pdk: Pdk, headers: object, *_: object) -> None:
    for name, value in table_of(headers).items():
        _response_header(pdk, name, value)


def _add_response_header(pdk: Pdk, name: object, value: object, *_: object) -> None:
    before = pdk.exchange.early_headers.get_all(raw(string_of(name, "header")).lower())
    pdk.exchange.set_response_header(raw(string_of(name, "header")), [*before, header_value(value)])


def _clear_response_header(pdk: Pdk, name: object, *_: object) -> None:
    pdk.exchange.set_response_header(raw(string_of(name, "header")), [])


def _exit(pdk: Pdk, status: object, body: object, headers: object) -> Exit:
    code = status_of(status, 100)
    pairs = exit_headers(headers)
    names = {name.lower() for name, _ in pairs}
    if body is None:
        return bodiless_exit(code, pdk.exchange, tuple(pairs))
    if isinstance(body, dict | list):
        content = lua_json(body)
        if b"content-type" not in names:
            pairs.append((b"Content-Type", b"application/json; charset=utf-8"))
    elif isinstance(body, str | bytes):
        content = raw(body)
    else:
        raise PdkError("body must be a nil, string or table")
    return Exit(code, content, tuple(pairs))


def _error(pdk: Pdk, status: object, message: object, headers: object) -> Exit:
    said = None if message is None else text(lua_json(message)) if isinstance(message, dict | list) else shown(message)
    extra = tuple(exit_headers(headers))
    return error_exit(status_of(status, 300), pdk.exchange.id, pdk.exchange.client_wants(), said, extra)


def _log_header(pdk: Pdk, name: object, *_: object) -> object:
    value = pdk.exchange.response_headers.get(raw(string_of(name, "header")).lower().replace(b"_", b"-"))
    return None if value is None else text(value)


def _log_headers(pdk: Pdk, *_: object) -> object:
    return multimap(pdk.exchange.response_headers.as_map(LOGGED_HEADERS))


# kong.ctx, kong.log, kong.client, kong.router


def _shared_get(pdk: Pdk, key: object, *_: object) -> object:
    return None if key is None else pdk.exchange.lua().shared_get(string_of(key, "key"))


def _shared_set(pdk: Pdk, key: object, value: object, *_: object) -> None:
    pdk.exchange.lua().shared_set(string_of(key, "key"), value)


def _serialize_value(pdk: Pdk, key: object, value: object, options: object) -> None:
    mode = options.get("mode", "set") if isinstance(options, dict) else "set"
    if mode not in ("set", "add", "replace"):
        raise PdkError("mode must be 'set', 'add' or 'replace'")
    if pdk.phase != "log":  # the record is a snapshot taken before the log phase
        plain = None if value is None else json.loads(lua_json(value))
        pdk.exchange.serialize_values.append((string_of(key, "key"), plain, str(mode)))


def _load_consumer(pdk: Pdk, wanted: object, by_name: object, *_: object) -> object:
    name = string_of(wanted, "consumer id")
    for entity_id, entity in pdk.exchange.entities.items():
        if "ws_id" not in entity and (name == entity_id or (by_name and entity.get("username") == name)):
            return dict(entity)
    return None


def _copied(entity: Mapping[str, Any] | None) -> object:
    return None if entity is None else dict(entity)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "kong.client.get_ip": lambda pdk, *_: pdk.exchange.client[0],
    "kong.client.get_forwarded_ip": lambda pdk, *_: pdk.exchange.client[0],
    "kong.client.get_port": lambda pdk, *_: pdk.exchange.client[1],
    "kong.client.get_forwarded_port": lambda pdk, *_: pdk.exchange.client[1],
    "kong.client.get_protocol": lambda *_: "http",
    "kong.client.get_consumer": lambda pdk, *_: _copied(pdk.exchange.consumer),
    "kong.client.get_credential": lambda pdk, *_: _copied(pdk.exchange.credential),
    "kong.client.load_consumer": _load_consumer,
    "kong.ctx.shared.get": _shared_get,
    "kong.ctx.shared.set": _shared_set,
    "kong.ip.is_trusted": lambda *_: False,
    "kong.log.serialize": lambda pdk, *_: serialize(pdk.exchange),
    "kong.log.set_serialize_value": _serialize_value,
    "kong.nginx.get_subsystem": lambda *_: "http",
    "kong.nginx.req_start_time": lambda pdk, *_: round(pdk.exchange.started, 3),
    "kong.node.get_id": lambda pdk, *_: pdk.node_id,
    "kong.plugin.get_id": lambda pdk, *_: pdk.row_id,
    "kong.request.get_body": _body,
    "kong.request.get_forwarded_host": lambda pdk, *_: pdk.exchange.host,
    "kong.request.get_forwarded_path": lambda pdk, *_: text(pdk.exchange.raw_path),
    "kong.request.get_header": _request_header,
    "kong.request.get_headers": _request_headers,
    "kong.request.get_host": lambda pdk, *_: pdk.exchange.host,
    "kong.request.get_http_version": lambda pdk, *_: lua_value(pdk.exchange.http_version),
    "kong.request.get_method": lambda pdk, *_: pdk.exchange.method,
    "kong.request.get_path": lambda pdk, *_: text(pdk.exchange.path),
    "kong.request.get_path_with_query": _path_with_query,
    "kong.request.get_port": lambda pdk, *_: pdk.exchange.server_port,
    "kong.request.get_query": _query,
    "kong.request.get_query_arg": _query_arg,
    "kong.request.get_raw_body": _raw_body,
    "kong.request.get_raw_path": lambda pdk, *_: text(pdk.exchange.raw_path),
    "kong.request.get_raw_query": lambda pdk, *_: text(pdk.exchange.query),
    "kong.request.get_scheme": lambda *_: "http",
    "kong.request.get_start_time": lambda pdk, *_: pdk.exchange.started_ms,
    "kong.request.get_uri_captures": _captures,
    "kong.response.add_header": _add_response_header,
    "kong.response.clear_header": _clear_response_header,
    "kong.response.error": _error,
    "kong.response.exit": _exit,
    "kong.response.get_header": _log_header,
    "kong.response.get_headers": _log_headers,
    "kong.response.get_source": lambda pdk, *_: pdk.exchange.source,
    "kong.response.get_status": lambda pdk, *_: pdk.exchange.status,
    "kong.response.set_header": _response_header,
    "kong.response.set_headers": _response_headers,
    "kong.router.get_route": lambda pdk, *_: _copied(
        pdk.exchange.entity(pdk.exchange.route.id) if pdk.exchange.route else None
    ),
    "kong.router.get_service": lambda pdk, *_: _copied(
        pdk.exchange.entity(pdk.exchange.service.id) if pdk.exchange.service else None
    ),
    "kong.service.request.add_header": _add_header,
    "kong.service.request.clear_header": _clear_header,
    "kong.service.request.set_body": _set_body,
    "kong.service.request.set_header": _set_header,
    "kong.service.request.set_headers": _set_headers,
    "kong.service.request.set_path": _set_path,
    "kong.service.request.set_query": _set_query,
    "kong.service.request.set_raw_body": _set_raw_body,
    "kong.service.request.set_raw_query": _set_raw_query,
}
