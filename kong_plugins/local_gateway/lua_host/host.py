"""The host of Kong's Lua plugins: one LuaJIT, many requests."""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from lupa.luajit21 import LuaError, LuaRuntime, lua_type

from kong_plugins.adapters.kong_schema import complete
from kong_plugins.local_gateway.lua_host.convert import from_lua, to_lua

Headers = Sequence[tuple[bytes, bytes]]
_LOGGER = logging.getLogger(__name__)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warn": logging.WARNING}


class ConfigError(Exception):
    """A plugin's configuration does not fit its schema. The text names every field, as Kong's does."""


class LuaPluginError(Exception):
    """A Lua plugin failed: Kong would answer 500 in access, and cut the answer in the later phases."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A plugin's own answer. ``body`` None: it gave none (nginx then sends its own page)."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class LuaPlugin:
    """A loaded plugin with one configuration. ``priority``: Kong runs access in descending order of it."""

    name: str
    priority: int
    config: Mapping[str, Any]
    handler: Any
    lua_config: Any


@dataclass(frozen=True, slots=True)
class RequestState:
    """A client's request as nginx parsed it. ``path`` without query; ``started`` in seconds since the epoch;
    ``service`` and ``route`` as Kong's entities (``id``, ``name``)."""

    id: str
    method: str
    path: bytes | str
    headers: Headers = ()
    body: bytes = b""
    query: bytes = b""
    scheme: str = "http"
    host: str = "localhost"
    port: int = 8000
    http_version: float = 1.1
    client_ip: str = "127.0.0.1"
    forwarded_ip: str | None = None
    started: float = field(default_factory=time.time)
    service: Mapping[str, Any] | None = None
    route: Mapping[str, Any] | None = None
    upstream_path: bytes = b"/"


class LuaHost:
    """Loads plugins from ``plugins_dir`` (``NAME/handler.lua``, ``NAME/schema.lua``) and runs their phases.

    Args:
        plugins_dir: Kong's ``kong/plugins`` folder.
        log: takes ``kong.log.LEVEL`` lines as (level, text); default: this module's logger.
        clock: seconds since the epoch, for ``ngx.now``.
        body_buffer_bytes: nginx's ``client_body_buffer_size``; a larger body is in a file, which
            ``get_raw_body()`` without a size refuses to read.
    """

    def __init__(
        self,
        plugins_dir: Path,
        log: Callable[[str, str], None] | None = None,
        clock: Callable[[], float] = time.time,
        body_buffer_bytes: int = 8192,
    ) -> None:
        self._plugins_dir = plugins_dir
        self._log = log or _log
        self._lua = LuaRuntime(encoding=None, register_eval=False, register_builtins=False, unpack_returned_tuples=True)
        bridge = self._lua.table()
        bridge[b"log"] = self._on_log
        bridge[b"now"] = clock
        bridge[b"sha256"] = _sha256
        bridge[b"base64url"] = _base64url
        bridge[b"read"] = self._read
        cjson = self._run_file("cjson.lua")
        self._host = self._run_file("kong_pdk.lua", bridge, cjson, self._run_file("headers.lua"))
        self._run_file("modules.lua", bridge, cjson, self._host[b"request_id"])
        self._host[b"buffer_bytes"](body_buffer_bytes)
        self._require = self._lua.globals()[b"require"]

    @property
    def lua(self) -> LuaRuntime:
        """The Lua state, for tests that call a plugin's modules one by one."""
        return self._lua

    def plugin(self, name: str, config: Mapping[str, Any]) -> LuaPlugin:
        """A plugin with a configuration, its schema's defaults applied.

        Raises:
            ConfigError: the configuration does not fit the schema.
            LuaPluginError: there is no such plugin, or it does not load.
        """
        handler = self._module(name, "handler")
        filled, errors = complete(self.fields(name), config, "config")
        if errors:
            raise ConfigError("; ".join(str(error) for error in errors))
        return LuaPlugin(name, int(handler[b"PRIORITY"]), filled, handler, to_lua(self._lua, filled))

    def fields(self, name: str) -> Sequence[Any]:
        """The fields of a plugin's configuration, in Kong's schema language.

        Raises:
            LuaPluginError: there is no such plugin, or it does not load.
        """
        schema = _plain(self._module(name, "schema")[b"fields"])
        found: Sequence[Any] = next((field["config"]["fields"] for field in schema if "config" in field), [])
        return found

    def _module(self, name: str, part: str) -> Any:
        try:
            return self._require(f"kong.plugins.{name}.{part}".encode())
        except LuaError as error:
            raise LuaPluginError(f"Lua plugin {name} in {self._plugins_dir} does not load: {error}") from error

    def pre_function(self, config: Mapping[str, Sequence[str]]) -> LuaPlugin:
        """Kong's bundled ``pre-function``: Lua sources by phase.

        Raises:
            LuaPluginError: a source does not compile.
        """
        try:
            handler = self._host[b"pre_function"](to_lua(self._lua, {k: v for k, v in config.items() if v}))
        except LuaError as error:
            raise LuaPluginError(f"pre-function does not compile: {error}") from error
        return LuaPlugin("pre-function", 1_000_000, config, handler, self._lua.table())

    def new_request(self, state: RequestState) -> LuaRequest:
        return LuaRequest(self, state)

    def _run_file(self, name: str, *arguments: object) -> Any:
        source = (files(__package__) / name).read_bytes()
        return self._lua.globals()[b"loadstring"](source, f"@{name}".encode())(*arguments)

    def _on_log(self, level: bytes, text: bytes) -> None:
        self._log(level.decode(), text.decode("utf-8", "replace"))

    def _read(self, name: bytes) -> tuple[bytes, bytes] | None:
        parts = name.decode().split(".")
        if parts[:2] != ["kong", "plugins"] or len(parts) < 4:
            return None
        path = self._plugins_dir.joinpath(*parts[2:]).with_suffix(".lua")
        return (path.read_bytes(), str(path).encode()) if path.is_file() else None


class LuaRequest:
    """One request on its way through the phases. Call the methods in the order of Kong's phases."""

    def __init__(self, host: LuaHost, state: RequestState) -> None:
        self._host = host
        self._lua = host._lua
        self._calls = host._host
        path = state.path.encode("utf-8", "surrogateescape") if isinstance(state.path, str) else state.path
        self._table = self._calls[b"new_request"](
            state.id.encode(),
            state.method.encode("latin-1", "replace"),
            path,
            state.query,
            state.scheme.encode(),
            state.host.encode(),
            state.port,
            state.http_version,
            state.started,
            state.client_ip.encode(),
            (state.forwarded_ip or state.client_ip).encode(),
            state.body,
            to_lua(self._lua, state.service),
            to_lua(self._lua, state.route),
        )
        self._table[b"var"][b"upstream_uri"] = state.upstream_path
        self._headers = self._table[b"headers"]
        for name, value in state.headers:
            self._calls[b"headers_add"](self._headers, name, value)

    # What goes upstream

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The request's headers as they would go upstream now, in order."""
        return _pairs(self._headers)

    @property
    def body(self) -> bytes:
        return bytes(self._table[b"body"])

    @property
    def query(self) -> bytes:
        return bytes(self._table[b"query"])

    @property
    def upstream_path(self) -> bytes:
        """nginx's ``upstream_uri``: without the query."""
        return bytes(self._table[b"var"][b"upstream_uri"])

    def set_upstream_path(self, path: bytes) -> None:
        self._table[b"var"][b"upstream_uri"] = path

    def header(self, name: bytes) -> bytes | None:
        """First value of a request header; case does not matter, ``_`` finds ``-``."""
        value = self._calls[b"headers_first"](self._headers, name)
        return None if value is None else bytes(value)

    def set_header(self, name: bytes, value: bytes) -> None:
        self._calls[b"headers_set"](self._headers, name, value)

    def clear_header(self, name: bytes) -> None:
        self._calls[b"headers_clear"](self._headers, name)

    def set_body(self, body: bytes) -> None:
        self._table[b"body"] = body

    def set_query(self, query: bytes) -> None:
        self._table[b"query"] = query

    def authenticate(self, consumer: Mapping[str, Any] | None, credential: Mapping[str, Any] | None) -> None:
        """Names the consumer, as an authentication plugin does."""
        self._table[b"consumer"] = to_lua(self._lua, consumer)
        self._table[b"credential"] = to_lua(self._lua, credential)

    # What goes to the client

    @property
    def response_status(self) -> int:
        return int(self._table[b"status"])

    @property
    def response_headers(self) -> list[tuple[bytes, bytes]]:
        return _pairs(self._table[b"response_headers"])

    def set_response_header(self, name: bytes, value: bytes) -> None:
        """A response header set before the answer came (``kong.response.set_header`` in access)."""
        self._calls[b"headers_set"](self._table[b"response_headers"], name, value)

    def start_response(
        self,
        status: int,
        headers: Headers,
        *,
        source: str = "service",
        upstream_status: str | None = None,
        proxy_ms: int | None = None,
    ) -> None:
        """The answer's head is there. Headers set earlier stay, these are added after them (as nginx does, even for
        equal names). ``source``: service, exit or error; ``upstream_status`` as nginx writes it; ``proxy_ms`` as Kong's
        ``latencies.proxy``."""
        table = self._table
        table[b"status"] = status
        table[b"source"] = source.encode()
        for name, value in headers:
            self._calls[b"headers_add"](table[b"response_headers"], name, value)
        table[b"var"][b"upstream_status"] = None if upstream_status is None else upstream_status.encode()
        table[b"ngx_ctx"][b"KONG_WAITING_TIME"] = proxy_ms
        table[b"ngx_ctx"][b"KONG_PROXIED"] = source == "service" or None

    # Phases

    def access(self, plugin: LuaPlugin) -> Exit | None:
        """Runs access; an Exit means the client is answered and no later plugin's access runs.

        Raises:
            LuaPluginError: the plugin failed; Kong answers its own 500.
        """
        return self._run(plugin, b"access")

    def header_filter(self, plugin: LuaPlugin) -> Exit | None:
        return self._run(plugin, b"header_filter")

    def body_filter(self, plugin: LuaPlugin, chunk: bytes, eof: bool) -> bytes:
        """Bytes to send to the client now.

        Raises:
            LuaPluginError: the plugin failed; nginx closes the connection.
        """
        try:
            out = self._calls[b"body_filter"](
                self._table, plugin.name.encode(), plugin.handler, plugin.lua_config, chunk, eof
            )
        except LuaError as error:
            raise LuaPluginError(f"{plugin.name} body_filter: {error}") from error
        return b"" if out is None else bytes(out)

    def log(self, plugin: LuaPlugin) -> None:
        self._run(plugin, b"log")

    # kong.ctx.shared

    def shared_get(self, key: str) -> Any:
        """``kong.ctx.shared.get`` as a plugin server receives it.

        Raises:
            TypeError: the value cannot be packed.
        """
        return from_lua(self._calls[b"shared"](self._table)[key.encode()])

    def serialize_value(self, key: str) -> Any:
        """What ``kong.log.set_serialize_value`` put under ``key`` for the log plugins behind; None without."""
        return from_lua(self._calls[b"serialize_value"](self._table, key.encode()))

    def shared_set(self, key: str, value: object) -> None:
        """``kong.ctx.shared.set`` as Kong carries it out; None deletes."""
        self._calls[b"shared"](self._table)[key.encode()] = to_lua(self._lua, value)

    def _run(self, plugin: LuaPlugin, phase: bytes) -> Exit | None:
        try:
            ended = self._calls[b"run"](self._table, plugin.name.encode(), plugin.handler, phase, plugin.lua_config)
        except LuaError as error:
            raise LuaPluginError(f"{plugin.name} {phase.decode()}: {error}") from error
        if ended is None:
            return None
        answer = self._table[b"exit"]
        body = answer[b"body"]
        return Exit(int(answer[b"status"]), tuple(_pairs(answer[b"headers"])), None if body is None else bytes(body))


def _pairs(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(bytes(entry[2]), bytes(entry[3])) for entry in headers.values()]


def _plain(table: Any) -> Any:
    """A schema as Python values: functions (validators) are left out."""
    if lua_type(table) == "table":
        items = {from_lua(k): _plain(v) for k, v in table.items() if lua_type(v) != "function"}
        if items and all(isinstance(k, int) for k in items):
            return [items[i] for i in sorted(items)]
        return items
    return from_lua(table)


def _sha256(data: bytes) -> bytes:
    return sha256(data).hexdigest().encode()


def _base64url(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None


def _log(level: str, text: str) -> None:
    _LOGGER.log(_LEVELS.get(level, logging.ERROR), "%s", text)
