"""The gateway: one request through Kong's phases, and the configuration that can change under running requests."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kong_plugins.adapters.deck_entities import DeckConfig
from kong_plugins.local_gateway.errors import Exit, error_exit
from kong_plugins.local_gateway.exchange import Exchange
from kong_plugins.local_gateway.exits import from_lua, handler_exit, plugin_failure
from kong_plugins.local_gateway.external import ExternalPlugin, PluginFailed
from kong_plugins.local_gateway.headers import Headers, text
from kong_plugins.local_gateway.keyauth import KeyAuth
from kong_plugins.local_gateway.logs import Log
from kong_plugins.local_gateway.lua_host import LuaHost, LuaPlugin, LuaPluginError
from kong_plugins.local_gateway.mp_rpc import READ_TIMEOUT_S, SocketPool
from kong_plugins.local_gateway.paths import escape, normalise, upstream_path
from kong_plugins.local_gateway.pdk import BODY_BUFFER_BYTES, Pdk
from kong_plugins.local_gateway.plugin_infos import describe
from kong_plugins.local_gateway.plugin_rows import PluginRows, Row
from kong_plugins.local_gateway.proxy import Proxy
from kong_plugins.local_gateway.response import Response, ResponseCut
from kong_plugins.local_gateway.router import Match, Router
from kong_plugins.local_gateway.serialize import entities
from kong_plugins.local_gateway.server import ClientConnection, Received
from kong_plugins.local_gateway.upstream import UpstreamPool

NOTICE = "This is kong-token-quota's local gateway, a stand-in for development. It is not Kong."


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway runs.

    ``plugin_sockets``: plugin name to its plugin server's socket. ``plugin_infos``: descriptions as the servers' dumps
    give them; what is missing is asked for (``plugin_infos.describe``). ``read_timeout_s``: Kong's patience with a
    plugin server between two reads. ``env``: where vault references are looked up. Port 0 takes any free one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    plugins_dir: Path = Path("kong/plugins")
    plugin_sockets: Mapping[str, str] = field(default_factory=dict)
    plugin_infos: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    read_timeout_s: float = READ_TIMEOUT_S
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Running:
    """One configuration in use; requests keep the one they began with."""

    router: Router
    rows: PluginRows
    entities: Mapping[str, Mapping[str, Any]]


class LocalGateway:
    """A gateway for one configuration.

    >>> gateway = LocalGateway(config, GatewayOptions(port=0))  # doctest: +SKIP
    >>> await gateway.start()                                   # doctest: +SKIP
    >>> gateway.port                                            # doctest: +SKIP
    """

    def __init__(self, config: DeckConfig, options: GatewayOptions, logger: logging.Logger | None = None) -> None:
        self._config = config
        self._options = options
        self._log = Log(logger or logging.getLogger("kong_plugins.local_gateway"))
        self._lua_host = LuaHost(options.plugins_dir, log=self._log.write, body_buffer_bytes=BODY_BUFFER_BYTES)
        self._sockets = SocketPool()
        self._upstreams = UpstreamPool()
        self._externals: dict[str, ExternalPlugin] = {}
        self._running: _Running | None = None
        self._seq = 0
        self._node_id = str(uuid.uuid4())
        self._clients: set[ClientConnection] = set()
        self._log_tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Asks the plugin servers who they are, checks every plugin row, then listens.

        Raises:
            DeckError: a plugin row does not fit, or a plugin server does not answer; nothing listens then.
            OSError: the port is taken.
        """
        self._log.write("notice", NOTICE)
        for name, path in self._options.plugin_sockets.items():
            info = self._options.plugin_infos.get(name) or await describe(name, path, self._sockets)
            self._externals[name] = ExternalPlugin(
                name, path, info, pool=self._sockets, log=self._log, read_timeout_s=self._options.read_timeout_s
            )
        self.reload(self._config)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), self._options.host, self._options.port, backlog=1024
        )
        self._log.write("notice", f"listening on http://{self._options.host}:{self.port}")

    @property
    def port(self) -> int:
        assert self._server is not None, "the gateway has not started"
        return int(self._server.sockets[0].getsockname()[1])

    def reload(self, config: DeckConfig) -> None:
        """Takes another configuration for requests to come; those under way keep theirs.

        Every row's ``__seq__`` rises, also when nothing changed, so instances are started anew, as in Kong.

        Raises:
            DeckError: the configuration does not fit; the old one stays.
        """
        rows = PluginRows(config, self._lua_host, self._externals, self._seq + 1, self._options.env)
        self._running = _Running(Router(config), rows, entities(config, int(time.time())))
        self._seq = rows.last_seq
        self._config = config

    async def stop(self) -> None:
        """Takes no new connection, lets requests and log records end for ``stop_timeout_s``, then cuts the rest."""
        self._log.write("notice", f"stopping: {sum(client.busy for client in self._clients)} requests under way")
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.stop_accepting()
        deadline = time.monotonic() + self._options.stop_timeout_s
        while (self._clients or self._log_tasks) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for client in list(self._clients):
            client.abort()
        for task in list(self._log_tasks):
            task.cancel()
        self._upstreams.close()
        self._sockets.close()

    # One request

    def opened(self, connection: ClientConnection) -> None:
        self._clients.add(connection)

    def closed(self, connection: ClientConnection) -> None:
        self._clients.discard(connection)

    async def handle(self, received: Received, connection: ClientConnection) -> None:
        """From the head of a request to its log record."""
        running = self._running
        assert running is not None
        exchange = self._exchange(received, connection, running)
        response = None
        try:
            answer = await self._access(exchange, received, running)
            response = Response(exchange, connection, self._log)
            if answer is None:
                assert exchange.service is not None
                if connection.gone:
                    exchange.status, exchange.upstream_status, exchange.source = 499, "-", "service"
                    exchange.response_headers = Headers([(b"Connection", b"close")])
                else:
                    proxy = Proxy(exchange, exchange.service, connection, response, pool=self._upstreams, log=self._log)
                    answer = await proxy.run()
            if answer is not None:
                response.answer(answer)
        except ResponseCut as cut:
            self._log.write("error", f"answer cut short: {cut}", exchange)
            connection.abort()
        finally:
            exchange.bytes_sent = connection.bytes_sent
            exchange.latencies.request = exchange.elapsed_ms()
            self._finish(exchange)

    def _exchange(self, received: Received, connection: ClientConnection, running: _Running) -> Exchange:
        headers = Headers(received.headers)
        path, _, query = received.target.partition(b"?")
        if path.lower().startswith((b"http://", b"https://")):
            path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") > 2 else b"/"
        host = text(headers.get(b"host") or b"kong").rpartition("@")[2].lower()
        host = host[: host.rfind(":")] if host.rpartition(":")[2].isdigit() and ":" in host else host
        return Exchange(
            id=uuid.uuid4().hex,
            method=received.method,
            target=received.target,
            path=normalise(path),
            query=query,
            headers=headers,
            body=received.body,
            http_version=received.http_version,
            client=connection.client,
            server_port=connection.server_port,
            host=host,
            head_size=received.head_size,
            request_size=received.size,
            lua_host=self._lua_host,
            entities=running.entities,
        )

    async def _access(self, exchange: Exchange, received: Received, running: _Running) -> Exit | None:
        """Route and access phase; None: the request goes upstream."""
        if received.parsed:
            exchange.match = _route(running.router, exchange)
        if received.problem is not None:
            answer: Exit | None = handler_exit(received.problem, exchange)
            if exchange.match is None:
                exchange.rows.add_all(running.rows.global_rows())
                return answer
        elif exchange.match is None:
            exchange.rows.add_all(running.rows.global_rows())
            return error_exit(404, exchange.id, exchange.client_wants(), "no Route matched with those values")
        else:
            answer = None
        match = exchange.match
        assert match is not None
        if match.service is None:
            answer = answer or error_exit(
                503, exchange.id, exchange.client_wants(), "no Service found with those values"
            )
        else:
            base = (match.service.path or "").encode()
            strip = match.prefix is not None
            exchange.upstream_path = escape(upstream_path(base, exchange.path, match.postfix, strip)) or b"/"
        for name in running.rows.names():
            consumer_id = exchange.consumer["id"] if exchange.consumer else None
            row = running.rows.lookup(name, match.route.id, match.service.id if match.service else None, consumer_id)
            if row is None:
                continue
            exchange.rows.add(row)
            if answer is None and row.has("access"):
                answer = await self._run_access(exchange, row)
        return answer

    async def _run_access(self, exchange: Exchange, row: Row) -> Exit | None:
        runner = row.runner
        try:
            if isinstance(runner, KeyAuth):
                return runner.access(exchange)
            if isinstance(runner, LuaPlugin):
                ended = exchange.lua().access(runner)
                exchange.take_from_lua()
                return None if ended is None else from_lua(ended, exchange)
            return await runner.handle(row, "access", self._pdk(exchange, "access", row))
        except LuaPluginError as error:
            self._log.write("error", str(error), exchange)
        except PluginFailed:
            pass  # written where it happened
        return plugin_failure(exchange)

    def _finish(self, exchange: Exchange) -> None:
        self._log.access(exchange)
        if exchange.has_lua and not exchange.lua().response_status:  # the client left before there was an answer
            exchange.lua().start_response(
                exchange.status, (), source=exchange.source, upstream_status=exchange.upstream_status
            )
        for row in exchange.rows.log:
            if isinstance(row.runner, LuaPlugin):
                try:
                    exchange.lua().log(row.runner)
                except LuaPluginError as error:
                    self._log.write("error", str(error), exchange)
        for row in exchange.rows.log:
            if isinstance(row.runner, ExternalPlugin):
                task = asyncio.get_running_loop().create_task(self._run_log(exchange, row, row.runner))
                self._log_tasks.add(task)
                task.add_done_callback(self._log_tasks.discard)

    async def _run_log(self, exchange: Exchange, row: Row, runner: ExternalPlugin) -> None:
        try:
            await runner.handle(row, "log", self._pdk(exchange, "log", row))
        except PluginFailed:
            return  # written where it happened; Kong's timer ends here, too

    def _pdk(self, exchange: Exchange, phase: str, row: Row) -> Pdk:
        return Pdk(exchange, phase, row, node_id=self._node_id, log=self._log)


def _route(router: Router, exchange: Exchange) -> Match | None:
    try:
        exchange.path.decode()
    except UnicodeDecodeError:
        return None  # Kong's router takes no path that is no UTF-8
    found = exchange.headers.as_map(limit=1000).items()
    headers = {name: value if isinstance(value, list) else [value] for name, value in found}
    return router.match(exchange.method, exchange.host, exchange.path, headers)
