"""Plugins that run in a plugin server: their phases over MsgPack:1, fail open where Kong fails open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kong_plugins.local_gateway.errors import Exit
from kong_plugins.local_gateway.instances import Instances
from kong_plugins.local_gateway.logs import Log
from kong_plugins.local_gateway.mp_rpc import READ_TIMEOUT_S, RpcBroken, RpcFailed, SocketPool
from kong_plugins.local_gateway.pdk import STEP_METHODS
from kong_plugins.local_gateway.pdk_arguments import NoSuchMethod, PdkError

if TYPE_CHECKING:
    from kong_plugins.local_gateway.pdk import Pdk
    from kong_plugins.local_gateway.plugin_rows import Row


class PluginFailed(Exception):  # noqa: N818 - what Kong's Lua error does to the request
    """The plugin cannot run: in access Kong answers its own 500, in log the record is lost."""


class ExternalPlugin:
    """One plugin of a plugin server.

    Args:
        name: as in the decK file.
        path: the plugin server's socket.
        info: its description as the server's dump gives it (``Priority``, ``Phases``, ``Schema``).
        pool: connections, shared by all plugins.
        read_timeout_s: how long Kong waits between two reads (``nginx_http_lua_socket_read_timeout``).
    """

    def __init__(
        self,
        name: str,
        path: str,
        info: Mapping[str, Any],
        *,
        pool: SocketPool,
        log: Log,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.priority = int(info["Priority"])
        self.phases = frozenset(str(phase) for phase in info["Phases"])
        fields = {key: value for entry in info["Schema"]["fields"] for key, value in entry.items()}
        self.config_fields: Sequence[Mapping[str, Mapping[str, Any]]] = fields.get("config", {}).get("fields", [])
        self.config_checks: Sequence[Mapping[str, Any]] = fields.get("config", {}).get("entity_checks", [])
        self._instances = Instances(name, pool, path, read_timeout_s)
        self._log = log

    async def handle(self, row: Row, phase: str, pdk: Pdk) -> Exit | None:
        """One event. An Exit is the plugin's answer to the client; None also when the plugin could not be asked.

        Raises:
            PluginFailed: as said there.
        """
        try:
            while True:
                try:
                    instance_id = await self._instances.instance_id(row.id, row.config)
                    return await self._event(instance_id, phase, pdk)
                except RpcFailed as error:
                    if "no plugin instance" not in str(error).lower():
                        self._log.write("error", f"[{self.name}] {error}", pdk.exchange)
                        return None
                    self._instances.forget()
                    self._log.write("warn", f"[{self.name}] {error}", pdk.exchange)
        except (RpcBroken, PdkError) as error:
            self._log.write("error", f"[{self.name}] {error}", pdk.exchange)
            raise PluginFailed(str(error)) from error

    async def _event(self, instance_id: object, phase: str, pdk: Pdk) -> Exit | None:
        rpc = self._instances.rpc
        step = await rpc.call("plugin.HandleEvent", {"InstanceId": instance_id, "EventName": phase})
        event_id = step.get("EventId") if isinstance(step, dict) else None
        while step is not None:
            data = step.get("Data") if isinstance(step, dict) else None
            if data == "ret":
                return None
            if not isinstance(data, dict):
                raise RpcBroken("the plugin server's answer has no Data")
            method = data.get("Method")
            method = method.decode("utf-8", "replace") if isinstance(method, bytes) else str(method)
            try:
                result = pdk.call(method, data.get("Args"))
            except NoSuchMethod:
                self._log.write("error", f"[{self.name}] could not find pdk method: {method}", pdk.exchange)
                result = None
            if isinstance(result, Exit):
                return result  # Kong never resumes the event: no frame follows
            own_name = result.get("_method") if isinstance(result, dict) else None
            answer = {"EventId": event_id} if result is None else {"EventId": event_id, "Data": result}
            # An empty table is true in Lua, so only nil and false leave the name to us.
            named = own_name is not None and own_name is not False
            step = await rpc.call(own_name if named else STEP_METHODS.get(method, "plugin.Step"), answer)
        return None
