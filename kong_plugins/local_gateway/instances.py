"""Plugin instances as a Kong worker keeps them: one per plugin row, started when first needed, left alone at stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kong_plugins.local_gateway.mp_rpc import RpcBroken, RpcClient, RpcFailed, SocketPool

CLAIM_STEP_S = 0.1
CLAIM_STEPS = 100


@dataclass(slots=True)
class _Instance:
    id: object  # None while somebody is starting it
    seq: int
    plugin: str


class Instances:
    """Instance ids of one plugin server's rows, and the calls that need them."""

    def __init__(self, plugin: str, pool: SocketPool, path: str, read_timeout_s: float) -> None:
        self.plugin = plugin
        self.rpc = RpcClient(pool, path, self._on_pid, read_timeout_s)
        self._running: dict[str, _Instance] = {}
        self._pid: int | None = None

    async def instance_id(self, row_id: str, config: Mapping[str, Any]) -> object:
        """The id to send events of this row to; starts it, and closes the one of an older configuration.

        Raises:
            RpcFailed: another request's start did not end in time; Kong goes on without the plugin.
            RpcBroken: the start itself failed; Kong answers 500.
        """
        instance = self._running.get(row_id)
        waited = 0
        while instance is not None and instance.id is None:
            await asyncio.sleep(CLAIM_STEP_S)
            waited += 1
            if waited > CLAIM_STEPS:
                self._running.pop(row_id, None)
                raise RpcFailed(f"Could not claim instance_id for {self.plugin} (key: {row_id})")
            instance = self._running.get(row_id)
        if instance is not None and instance.seq == config["__seq__"]:
            return instance.id
        old = None
        if instance is None:
            instance = self._running[row_id] = _Instance(None, config["__seq__"], self.plugin)
        else:
            old, instance.id = instance.id, None
        try:
            await self._start(row_id, instance, config)
        except (RpcFailed, RpcBroken) as error:
            raise RpcBroken(f"starting instance: {error}") from error
        finally:
            if instance.id is None:
                self._running.pop(row_id, None)
        started = instance.id
        if old is not None:
            try:
                await self.rpc.call("plugin.CloseInstance", old)
            except RpcFailed:
                # Kong does not care either: somebody else may have closed it first.
                return started
        return started

    async def _start(self, row_id: str, instance: _Instance, config: Mapping[str, Any]) -> None:
        argument = {"Name": self.plugin, "Config": json.dumps(config, separators=(",", ":"), ensure_ascii=False)}
        status = await self.rpc.call("plugin.StartInstance", argument)
        if not isinstance(status, dict) or status.get("Id") is None:
            raise RpcBroken(f"StartInstance of row {row_id} gave no Id")
        instance.id = status["Id"]
        instance.seq = config["__seq__"]

    def forget(self) -> None:
        """All rows start anew at their next event."""
        self._running.clear()

    def _on_pid(self, pid: int) -> None:
        if self._pid is not None and pid != self._pid:
            self.forget()
        self._pid = pid
