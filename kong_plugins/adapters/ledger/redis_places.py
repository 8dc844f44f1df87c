"""Engines' places in Redis or Valkey: lua/enter.lua, leave.lua, renew.lua. An engine's keys share a hash tag of their
own, as its tenants are spread over all partitions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgpack

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.connections import Argument, Connections, load_script
from kong_plugins.domain.shares import LEASE_US, EngineShare, PlaceState


class RedisPlaces:
    """``EnginePlaces`` behind ``connections``. The server's clock is the clock."""

    def __init__(self, connections: Connections, *, lease_us: int = LEASE_US) -> None:
        self._connections = connections
        self._lease_us = lease_us
        self._scripts = {name: load_script(name, ("places",)) for name in ("enter", "leave", "renew")}
        self.now_us = 0  # the server's clock in its last answer

    def close(self) -> None:
        self._connections.close()

    def enter(self, share: EngineShare, tenant: str, hold_id: str) -> PlaceState:
        numbers = (share.places, share.kept, share.weight, self._lease_us)
        args = (layout.encode(tenant), layout.member(tenant, hold_id), *numbers)
        status, (taken, mine) = self._call("enter", share.key, args)
        return PlaceState(status == b"in", share.places, taken, mine, self.now_us)

    def leave(self, key: str, requests: Sequence[tuple[str, str]]) -> int:
        _, left = self._call("leave", key, [layout.member(*request) for request in requests])
        return int(left)

    def renew(self, key: str, requests: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        members = {layout.member(*request): request for request in requests}
        _, gone = self._call("renew", key, (self._lease_us, *members))
        return tuple(members[member.decode()] for member in gone)

    def _call(self, name: str, key: str, args: Sequence[Argument]) -> tuple[bytes, Any]:
        answer = msgpack.unpackb(self._connections.call(self._scripts[name], _keys(key), args), raw=True)
        status, self.now_us, value = answer
        return status, value


@lru_cache(maxsize=4096)
def _keys(key: str) -> tuple[str, str, str]:
    tag = f"{{engine/{layout.encode(key)}}}"
    return f"{tag}:places", f"{tag}:loads", f"{tag}:tenants"
