"""One request on its way through the gateway: what nginx's request and Kong's ctx hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.deck_entities import Route, Service
from kong_plugins.local_gateway.collected import Collected
from kong_plugins.local_gateway.headers import Headers, raw, text
from kong_plugins.local_gateway.lua_host import LuaHost, LuaRequest, RequestState
from kong_plugins.local_gateway.router import Match


@dataclass(slots=True)
class Latencies:
    """Milliseconds as Kong's headers and log carry them; ``proxy`` -1 means nothing was proxied."""

    kong: int = 0
    proxy: int = -1
    receive: int = 0
    request: int = 0


@dataclass(slots=True)
class Try:
    """One attempt at the upstream, as the log's ``tries`` list it."""

    ip: str
    port: int
    start_ns: int
    latency_ns: int = 0
    failed_code: int | None = None


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its answer. ``query`` and ``headers`` are as they would go upstream now, ``target`` as it came."""

    id: str
    method: str
    target: bytes
    path: bytes
    query: bytes
    headers: Headers
    body: bytes
    http_version: float
    client: tuple[str, int]
    server_port: int
    host: str
    head_size: int
    request_size: int
    lua_host: LuaHost
    entities: Mapping[str, Mapping[str, Any]]
    started: float = field(default_factory=time.time)
    match: Match | None = None
    consumer: Mapping[str, Any] | None = None
    credential: Mapping[str, Any] | None = None
    upstream_path: bytes = b""
    rows: Collected = field(default_factory=Collected)
    early_headers: Headers = field(default_factory=Headers)
    serialize_values: list[tuple[str, object, str]] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)
    tries: list[Try] = field(default_factory=list)
    upstream_status: str | None = None
    source: str = "exit"
    status: int = 0
    reason: bytes | None = None  # the upstream's, with its status; None: nginx's own for the status
    response_headers: Headers = field(default_factory=Headers)
    bytes_sent: int = 0
    body_read: bool = False
    _lua: LuaRequest | None = None

    @property
    def started_ms(self) -> int:
        return int(self.started * 1000)

    def elapsed_ms(self) -> int:
        """Milliseconds since the request began."""
        return int((time.time() - self.started) * 1000)

    @property
    def raw_path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def original_query(self) -> bytes:
        return self.target.partition(b"?")[2]

    @property
    def route(self) -> Route | None:
        return self.match.route if self.match else None

    @property
    def service(self) -> Service | None:
        return self.match.service if self.match else None

    def entity(self, entity_id: str | None) -> Mapping[str, Any] | None:
        """A route, service or consumer of the configuration as Kong shows it."""
        return self.entities.get(entity_id or "")

    def lua(self) -> LuaRequest:
        """The request as Lua plugins see it, made when the first one needs it."""
        if self._lua is None:
            state = RequestState(
                id=self.id,
                method=self.method,
                path=self.path,
                headers=list(self.headers),
                body=self.body,
                query=self.query,
                host=self.host,
                port=self.server_port,
                http_version=self.http_version,
                client_ip=self.client[0],
                started=self.started,
                upstream_path=self.upstream_path,
                service=self.entity(self.service.id if self.service else None),
                route=self.entity(self.route.id if self.route else None),
            )
            self._lua = self.lua_host.new_request(state)
            if self.consumer is not None:
                self._lua.authenticate(self.consumer, self.credential)
        return self._lua

    def take_from_lua(self) -> None:
        """After a Lua plugin's access: what it changed of the request."""
        if self._lua is not None:
            changed = self._lua.headers
            if changed != list(self.headers):
                self.headers.replace(changed)
            self.body = self._lua.body
            self.query = self._lua.query
            self.upstream_path = self._lua.upstream_path

    # Changes from outside Lua go to both sides.

    def set_header(self, name: bytes, value: bytes) -> None:
        self.headers.set(name, value)
        if self._lua is not None:
            self._lua.set_header(name, value)

    def add_header(self, name: bytes, value: bytes) -> None:
        self.headers.add(name, value)
        if self._lua is not None:
            # The Lua side has no second header of a name; one header with a list says the same.
            self._lua.set_header(name, b", ".join(self.headers.get_all(name.lower())))

    def clear_header(self, name: bytes) -> None:
        self.headers.remove(name)
        if self._lua is not None:
            self._lua.clear_header(name)

    def set_body(self, body: bytes) -> None:
        self.body = body
        if self._lua is not None:
            self._lua.set_body(body)

    def set_upstream_path(self, path: bytes) -> None:
        self.upstream_path = path
        if self._lua is not None:
            self._lua.set_upstream_path(path)

    def set_query(self, query: bytes) -> None:
        self.query = query
        if self._lua is not None:
            self._lua.set_query(query)

    def authenticate(self, consumer: Mapping[str, Any], credential: Mapping[str, Any]) -> None:
        self.consumer, self.credential = consumer, credential
        if self._lua is not None:
            self._lua.authenticate(consumer, credential)

    def set_response_header(self, name: object, value: object) -> None:
        """A response header set before there is a response; it stays whatever the response will be."""
        values = [raw(item) for item in value] if isinstance(value, list) else [raw(value)]
        self.early_headers.set(raw(name), values)

    @property
    def has_lua(self) -> bool:
        return self._lua is not None

    def client_wants(self) -> str | None:
        """The client's Accept."""
        accept = self.headers.get(b"accept")
        return None if accept is None else text(accept)
