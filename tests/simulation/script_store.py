"""The store as it is: the ledger's and the outbox' own scripts in a real Valkey. Changed is where the ledger's scripts
take the time from: a key that the world sets. The world's time lies years ahead of the server's, so the server forgets
nothing by itself; what the world's time has passed is removed here, a second late at most."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import redis

from kong_plugins.adapters.ledger import EmbeddedValkey, RedisLedger, layout
from kong_plugins.adapters.ledger.audit import LedgerAudit
from kong_plugins.adapters.ledger.connections import Script
from kong_plugins.adapters.ledger.pooled_client import PooledClient
from kong_plugins.adapters.outbox import outbox, queue
from kong_plugins.adapters.outbox.calls import Call, Calls, outbox_key
from kong_plugins.adapters.outbox.outbox import Outbox
from kong_plugins.adapters.outbox.queue import GroupQueue
from kong_plugins.application.deliver import Queue
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.partitions import hash_tag, partition_of
from kong_plugins.domain.windows import FixedWindow

if TYPE_CHECKING:
    from tests.simulation.invariants import Watch
    from tests.simulation.parties import Wire

NOW_KEY = "simulated:now"
TICK_US = 1_000_000
_TIME = b"redis.call('TIME')"
_CLOCK = b"(function() local us = tonumber(redis.call('GET', 'simulated:now')) local s = math.floor(us / 1000000)"
_CLOCK += b" return {s, us - s * 1000000} end)()"
_FORGET = """
local cursor, gone = '0', 0
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local at = redis.call('PEXPIRETIME', key)
    if at >= 0 and at <= tonumber(ARGV[1]) then gone = gone + redis.call('DEL', key) end
  end
until cursor == '0'
return gone
"""


@lru_cache
def with_clock(script: Script) -> Script:
    """The same script, told the time."""
    if script.source.count(_TIME) != 1:
        raise ValueError(f"{script.name} asks for the time in {script.source.count(_TIME)} places, not in one")
    source = script.source.replace(_TIME, _CLOCK)
    return Script(script.name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


class _Connections:
    """``Connections`` that set the clock before each script."""

    def __init__(self, store: ScriptStore) -> None:
        self._store = store
        self._pooled = PooledClient(store.client, timeout_s=10)

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> bytes:
        self._store.client.set(NOW_KEY, self._store.clock())
        return self._pooled.call(with_clock(script), keys, args)

    def close(self) -> None:
        """Nothing of its own is open."""


class ScriptStore:
    """Over a server that the caller started and ends. What is in it is removed at the beginning."""

    fails_over = False

    def __init__(self, server: EmbeddedValkey) -> None:
        self._server = server
        self.client = redis.Redis.from_url(server.url)
        self.client.flushall()
        self._calls = Calls(self.client)
        self._outbox = Outbox(self._calls)
        self._audit = LedgerAudit(self._calls)
        self._forgot_us = 0
        self._few = ExitStack()

    def begin(self, clock: Callable[[], int], limits: Mapping[str, int], partitions: Sequence[int]) -> None:
        self.clock = clock
        self.partitions = tuple(partitions)
        for module in (queue, outbox):  # the others are empty, and asked each time
            self._few.enter_context(patch.object(module, "PARTITIONS", max(partitions) + 1))
        self._limits = limits
        self._connections = _Connections(self)
        self._own = self.ledger_for(clock)

    def ledger_for(self, clock: Callable[[], int]) -> RedisLedger:
        return RedisLedger(self._connections, clock=clock, **self._limits)

    def knows(self, tenant: str, hold_id: str) -> bool:
        key = f"{hash_tag(partition_of(tenant))}:hold:{layout.member(tenant, hold_id)}"
        return bool(self.client.exists(key))

    def now_us(self, ledger: RedisLedger) -> int:
        return self.clock()

    def tick(self) -> None:
        now_us = self.clock()
        if now_us >= self._forgot_us + TICK_US:
            self._forgot_us = now_us
            self.client.eval(_FORGET, 0, now_us // 1000)

    def restart(self) -> None:
        """Killed; it reads its file again."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()
        self._server.start()

    def close(self) -> None:
        self._few.close()
        self.client.close()

    def queue(
        self, wire: Wire, sink: str, consumer: str, clock: Callable[[], float], gone: Callable[[], frozenset[str]]
    ) -> Queue:
        # Named as of this process: what another consumer of it left is known to be free at once.
        name = f"{os.uname().nodename}-{os.getpid()}-{consumer.rpartition('-')[2]}"
        return GroupQueue(_WireCalls(wire), sink, name, clock=clock)

    # What processes ask for over their wires.

    def scripts(self, calls: Sequence[Call]) -> list[Any]:
        return self._calls.scripts(calls)

    def commands(self, commands: Sequence[Any]) -> list[Any]:
        return self._calls.commands(commands)

    def trim(self) -> list[OutboxEntry]:
        """What was there before and is not any more."""
        before = {(p, each.position): each for p in self.partitions for each in self.outbox(p)}
        self._outbox.trim()
        left = {(p, each.position) for p in self.partitions for each in self.outbox(p)}
        return [each for key, each in before.items() if key not in left]

    def retry_dead(self) -> list[OutboxEntry]:
        letters = list(self._outbox.dead_letters())
        self._outbox.retry([each.position for each in letters])
        return [each.entry for each in letters]

    # What is looked at.

    @property
    def dead(self) -> list[tuple[int, str, str, OutboxEntry]]:
        return [
            (int(each.position.partition(":")[0]), each.sink, each.reason, each.entry)
            for each in self._outbox.dead_letters()
        ]

    def outbox(self, partition: int) -> tuple[OutboxEntry, ...]:
        return self._own.outbox(partition, "0", 100_000)

    def news(self, partition: int, watch: Watch) -> tuple[OutboxEntry, ...]:
        return self._own.outbox(partition, watch.durable.tails.get(partition, "0"), 1000)

    def committed(self, counters: Sequence[tuple[str, str, FixedWindow, int]]) -> list[int | None]:
        return self._audit.committed(counters)

    def drained(self) -> bool:
        return not any(self.client.xlen(outbox_key(partition)) for partition in self.partitions) and not self.dead

    def look(self, operation: str, args: tuple[Any, ...], answer: Any, watch: Watch) -> None:
        match operation:
            case "commands":
                for name, key, *rest in args[0]:
                    if name == "XACK":
                        partition = next(each for each in self.partitions if key == outbox_key(each))
                        for position in rest[1:]:
                            event_id = watch.position(partition, position)
                            if event_id is not None:
                                watch.acknowledged(event_id)
            case "trim":
                again = [each.event_id for partition in self.partitions for each in self.outbox(partition)]
                watch.trimmed((each.event_id for each in answer), [*again, *(each[3].event_id for each in self.dead)])
            case "retry_dead":
                for partition in self.partitions:
                    watch.again(partition, self.news(partition, watch))


class _WireCalls(Calls):
    """``Calls`` of a process: each round trip is one operation on its way."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(None)
        self._wire = wire

    def scripts(self, calls: Sequence[Call]) -> list[Any]:
        found: list[Any] = self._wire.call("scripts", tuple(calls))
        return found

    def commands(self, commands: Sequence[Any]) -> list[Any]:
        found: list[Any] = self._wire.call("commands", tuple(commands))
        return found
