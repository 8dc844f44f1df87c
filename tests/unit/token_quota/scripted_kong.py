"""Kong's side of a plugin, answering as recorded: tables lose nil, empty maps become lists, exit unwinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gevent
import msgpack

from kong_plugins.adapters.ledger import MemoryLedger, MemoryPlaces
from kong_plugins.adapters.process_parts import ProcessParts
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Settlement, SettleOutcome
from kong_plugins.token_quota.plugin import Plugin

NOON_US = 1_763_812_800_000_000  # 2025-11-22T12:00:00Z
CHAT = "/v1/chat/completions"


class Exited(BaseException):
    """What ends a plugin's phase after ``kong.response.exit``."""


class _Shared:
    def __init__(self, kong: ScriptedKong) -> None:
        self._kong = kong

    def get(self, key: str) -> Any:
        self._kong.calls.append(f"ctx.shared.get {key}")
        if key in self._kong.gone:
            raise ConnectionError("Kong is gone")
        return self._kong.tables.get(key)

    def set(self, key: str, value: Any) -> None:
        self._kong.calls.append(f"ctx.shared.set {key}")
        self._kong.tables[key] = through_kong(value)


class _Response:
    def __init__(self, kong: ScriptedKong) -> None:
        self._kong = kong

    def exit(self, status: int, body: str | bytes, headers: dict[str, str]) -> None:
        self._kong.calls.append("response.exit")
        self._kong.exit = (status, body, headers)
        msgpack.packb([status, body, headers])
        raise Exited


class ScriptedKong:
    """One request. ``calls`` are its PDK calls in order; ``tables`` is ``kong.ctx.shared``; ``exit`` the answer."""

    def __init__(self, **tables: Any) -> None:
        self.tables: dict[str, Any] = {name: through_kong(table) for name, table in tables.items()}
        self.calls: list[str] = []
        self.gone: set[str] = set()  # tables that Kong does not live to hand over
        self.exit: tuple[int, str | bytes, dict[str, str]] | None = None
        self.ctx = type("Ctx", (), {"shared": _Shared(self)})
        self.response = _Response(self)

    def run(self, phase: Any) -> ScriptedKong:
        with suppress(Exited):
            phase(self)
        return self

    @property
    def status(self) -> int | None:
        return self.exit[0] if self.exit else None

    @property
    def error(self) -> dict[str, Any]:
        assert self.exit is not None, self.tables
        document: dict[str, Any] = json.loads(self.exit[1])
        return document["error"] if isinstance(document.get("error"), dict) else document

    @property
    def headers(self) -> dict[str, str]:
        assert self.exit is not None
        return self.exit[2]

    @property
    def decision(self) -> dict[str, Any]:
        table: dict[str, Any] = self.tables["token_quota"]
        return table


def through_kong(value: Any) -> Any:
    """The value after a round trip through MessagePack and Lua."""
    packed = msgpack.packb(value, unicode_errors="surrogateescape")
    return _lua(msgpack.unpackb(packed, unicode_errors="surrogateescape", strict_map_key=False, raw=False))


def _lua(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lua(item) for key, item in value.items() if item is not None} or []
    if isinstance(value, list):
        return [_lua(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value


class Clock:
    def __init__(self) -> None:
        self.us = NOON_US

    def __call__(self) -> int:
        return self.us


class SwitchableLedger(MemoryLedger):
    """The ledger in memory behind a line that can be cut: before an operation, or before its reply is back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.cut = False
        self.lose_replies = False
        self.arriving: list[gevent.Greenlet] = []
        self.late_s: float | None = None  # holds take effect so much later, when nobody waits for them any more
        self.refuses: set[str] = set()  # ids of holds whose settlement it answers with an error
        self.holds: list[HoldRequest] = []

    def hold(self, request: HoldRequest) -> HoldOutcome:
        self._line()
        self.holds.append(request)
        if self.late_s is not None:
            self.arriving.append(gevent.spawn_later(self.late_s, super().hold, request))
            self._line(True)
        outcome = super().hold(request)
        self._line(self.lose_replies)
        return outcome

    def settle(self, settlement: Settlement) -> SettleOutcome:
        self._line(settlement.hold_id in self.refuses)
        return super().settle(settlement)

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        self._line()
        return super().tighten(tenant, hold_id, amounts)

    def _line(self, lost: bool = False) -> None:
        if self.cut or lost:
            raise LedgerUnavailable("the line is cut")


class Bench:
    """A plugin with a ledger of its own, and requests for it."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.ledger = SwitchableLedger(self.clock)
        self.places = MemoryPlaces(self.clock)
        self.parts = ProcessParts(
            connect=lambda _url, _timeout_s: self.ledger, connect_places=lambda _url, _timeout_s: self.places
        )
        self.plugin = Plugin({"ledger_url": "redis://127.0.0.1/0", **config}, self.parts)
        self._requests = 0

    def access(self, body: Any = None, **gate: Any) -> ScriptedKong:
        return ScriptedKong(usage_gate=self.gate(body, **gate)).run(self.plugin.access)

    def gate(self, body: Any = None, **more: Any) -> dict[str, Any]:
        self._requests += 1
        raw = body if isinstance(body, bytes) else json.dumps(chat() if body is None else body).encode()
        if "refused" in more or more.get("size") == 0:
            raw = None
        table = {
            "v": 1,
            "id": f"{self._requests:032x}",
            "method": "POST",
            "path": CHAT,
            "type": "application/json",
            "body": raw,
            "size": len(raw or b""),
            "consumer": {"id": "5f6c", "username": "tenant_a"},
            "credential": {"id": "77", "hash": "0123456789abcdef"},
            "ip": "10.1.2.3",
            "service": {"id": "s1", "name": "deepseek-r1"},
            "route": {"id": "r1", "name": "v1"},
            **more,
        }
        return {key: value for key, value in table.items() if value is not None}

    def log(self, admitted: ScriptedKong, kept: bytes | None = None, **tap: Any) -> ScriptedKong:
        """``kept``: the body that the tap kept for retries."""
        tables: dict[str, Any] = {"usage_tap": tap_table(admitted, **tap)}
        if kept is not None:
            tables["usage_tap"]["answer"] = "kept"
            tables["usage_tap_answer"] = {"v": 1, "status": 200, "type": "application/json", "body": kept}
        kong = ScriptedKong(**tables).run(self.plugin.log)
        assert self.parts.counts.join(timeout_s=20)
        return kong

    def committed(self, tenant: str = "tenant_a") -> int:
        return sum(balance.state.committed for balance in self.ledger.balances(tenant))

    def held(self, tenant: str = "tenant_a") -> int:
        return sum(balance.state.held for balance in self.ledger.balances(tenant))

    def events(self) -> list[dict[str, Any]]:
        entries = [entry for partition in range(64) for entry in self.ledger.outbox(partition)]
        return [json.loads(entry.event) for entry in entries]


def tap_table(admitted: ScriptedKong, **more: Any) -> dict[str, Any]:
    decision = admitted.decision
    return {
        "v": 1,
        "log": decision["log"],
        "request_id": decision["log"]["hold"],
        "endpoint": decision["meter"]["endpoint"],
        "stream": decision["meter"]["stream"],
        "ended": True,
        "status": 200,
        "upstream_status": "200",
        "source": "service",
        "started_ms": 1_763_812_800_000,
        "last_ms": 1_763_812_801_500,
        **more,
    }


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "deepseek-r1", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 64, **more}


def budget(name: str = "daily", limit: int = 1_000, **more: Any) -> dict[str, Any]:
    return {"name": name, "limit": limit, "window": "day", **more}
