"""Processes with one promise broken: `NAME MODULE ARGUMENTS…` runs the module with the bug planted.

A run of chaos that does not tell them from the others would not tell a real one either.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.chaos.faults import Kind

SINK_S = 0.1  # a sink that takes its time, so that few kills are enough


@dataclass(frozen=True)
class Mutant:
    """``parts``: the processes that it is planted into. It shows under faults of ``kind``, at ``targets``, as
    ``found``."""

    parts: tuple[str, ...]
    plant: Callable[[], None]
    kind: Kind
    targets: tuple[str, ...]
    found: str


def _acknowledge_first() -> None:
    from kong_plugins.application.deliver import Batch, Delivery

    deliver = Delivery._deliver

    def wrong(self: Delivery, batch: Batch) -> float:
        self._queue.acknowledge(batch.entries)
        time.sleep(SINK_S)
        return deliver(self, batch)

    Delivery._deliver = wrong  # type: ignore[method-assign]


def _swallow_a_full_disk() -> None:
    from kong_plugins.adapters.sinks.jsonl_sink import JsonLinesSink
    from kong_plugins.application.ports import SinkUnavailable

    write = JsonLinesSink.write

    def wrong(self: JsonLinesSink, entries: Any) -> Any:
        try:
            return write(self, entries)
        except SinkUnavailable:
            return ()

    JsonLinesSink.write = wrong  # type: ignore[method-assign]


def _fail_open() -> None:
    from kong_plugins.adapters.ledger import RedisLedger
    from kong_plugins.application.ports import LedgerUnavailable
    from kong_plugins.domain.holds import HoldOutcome, HoldRequest, LineState

    hold = RedisLedger.hold

    def wrong(self: RedisLedger, request: HoldRequest) -> HoldOutcome:
        try:
            return hold(self, request)
        except LedgerUnavailable:
            states = tuple(LineState(line.key, line.limit, 0, 0, self.now_us) for line in request.lines)
            return HoldOutcome(True, states, self.now_us)

    RedisLedger.hold = wrong  # type: ignore[method-assign]


def _hold_nothing() -> None:
    from kong_plugins.adapters.ledger import RedisLedger
    from kong_plugins.domain.holds import HoldOutcome, HoldRequest

    hold = RedisLedger.hold

    def wrong(self: RedisLedger, request: HoldRequest) -> HoldOutcome:
        return hold(self, replace(request, lines=tuple(replace(line, limit=9 * line.limit) for line in request.lines)))

    RedisLedger.hold = wrong  # type: ignore[method-assign]


def _keep_nothing() -> None:
    from kong_plugins.application.posting import Poster

    Poster._keep = lambda self, posting, why: None  # type: ignore[method-assign]


def _bill_again() -> None:
    from kong_plugins.application.posting import Poster

    post = Poster._post

    def wrong(self: Poster, posting: Any) -> Any:
        event = json.loads(posting.event)
        event["id"] = event["data"]["hold"] = f"{event['id']}-again"
        self._ledger.record(posting.tenant, event["id"], json.dumps(event).encode())
        return post(self, posting)

    Poster._post = wrong  # type: ignore[method-assign]


def _count_one_more() -> None:
    from kong_plugins.application import settle

    billing_event = settle.billing_event

    def wrong(admitted: Any, ending: Any, usage: Any, evidence: Any) -> bytes:
        return billing_event(admitted, ending, replace(usage, completion=usage.completion + 1), evidence)

    settle.billing_event = wrong  # type: ignore[assignment]


def _stay_away() -> None:
    from kong_plugins.plugin_server.server import Server

    Server._appear_again = lambda self: None  # type: ignore[method-assign]


_SERVERS = ("token-quota", "billing-events")
MUTANTS = {
    "acknowledges before it writes": Mutant(
        ("collector",), _acknowledge_first, Kind.KILL, ("collector",), "no event, no hold"
    ),
    "takes a full disk for a write": Mutant(
        ("collector",), _swallow_a_full_disk, Kind.DISK, ("books",), "lines is without"
    ),
    "lets through what was not held": Mutant(
        ("token-quota",), _fail_open, Kind.STOP, ("ledger",), "its event is on no counter"
    ),
    "holds against nine times the limit": Mutant(
        ("token-quota",), _hold_nothing, Kind.KILL, ("sink",), "committed and held in the minute"
    ),
    "forgets what neither ledger nor spool takes": Mutant(
        _SERVERS, _keep_nothing, Kind.DISK, ("ledger+spool",), "its hold is open, and nothing"
    ),
    "bills under a second id": Mutant(_SERVERS, _bill_again, Kind.KILL, ("sink",), "never ran on the engine"),
    "counts a token too many": Mutant(_SERVERS, _count_one_more, Kind.KILL, ("sink",), "its client saw"),
    "leaves a removed socket away": Mutant(_SERVERS, _stay_away, Kind.SOCKET, ("token-quota",), "not well"),
}


if __name__ == "__main__":
    name, module = sys.argv[1:3]
    if set(MUTANTS[name].parts) & set(_SERVERS):
        from gevent import monkey

        monkey.patch_all()  # as the plugin server does, before anything of ours is imported
    MUTANTS[name].plant()
    sys.argv = [sys.argv[0], *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
