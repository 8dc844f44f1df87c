"""A hold's own end and a replay of its settlement cannot both charge, whichever comes first, on every ledger."""

from __future__ import annotations

import gevent
import pytest

from kong_plugins.adapters.background import GreenletQueue
from kong_plugins.adapters.spool import DurableSpool, spool_directory
from kong_plugins.application.ports import Recording
from kong_plugins.application.posting import Poster
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement, SettleStatus
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.contract.conftest import GRACE_US, Bench

TENANT = "tenant_a"
TTL_US = 20_000
LINE = Line("daily", FixedWindow(Unit.MONTH), TOTAL, 1_000, 100)
SETTLEMENT = Settlement(TENANT, "r1", Usage(10, 5), Evidence.EXACT, b'{"id":"r1"}')


def events(bench: Bench) -> list[bytes]:
    return [entry.event for entry in bench.ledger.outbox(partition_of(TENANT))]


def counted(bench: Bench) -> tuple[int, int]:
    (state,) = bench.ledger.peek(TENANT, (LINE,))
    return state.committed, state.held


def spooled(bench: Bench) -> Poster:
    """A poster in whose spool the settlement waits."""
    spool = DurableSpool(spool_directory(), "contract")
    spool.append(SETTLEMENT)
    return Poster(bench.ledger, spool, GreenletQueue("replay"))


def replay(poster: Poster) -> None:
    poster.resume()
    with gevent.Timeout(10):
        while poster._spool.depth:
            gevent.sleep(0.001)


def test_expired_first_the_replay_charges_nothing(bench: Bench) -> None:
    """The grace is over: the hold ended with its own event, and the settlement is repeated."""
    held = bench.ledger.hold(HoldRequest(TENANT, "r1", (LINE,), TTL_US, b'{"id":"r1","outcome":"expired"}'))
    poster = spooled(bench)
    bench.wait_until(held.now_us + TTL_US + GRACE_US + 1)
    assert bench.ledger.expire() == 1
    replay(poster)
    assert (poster.counts.repeated, poster.counts.posted) == (1, 0)
    assert events(bench) == [b'{"id":"r1","outcome":"expired"}']
    assert counted(bench) == (0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_replayed_first_the_expiry_does_nothing(bench: Bench, late: bool) -> None:
    """In time, or lapsed and within its grace: charged once, and the end of the grace finds nothing."""
    held = bench.ledger.hold(HoldRequest(TENANT, "r1", (LINE,), TTL_US, b'{"id":"r1","outcome":"expired"}'))
    poster = spooled(bench)
    if late:
        bench.wait_until(held.now_us + TTL_US + 1)
        assert bench.ledger.expire() == 0
    replay(poster)
    bench.wait_until(held.now_us + TTL_US + GRACE_US + 1)
    assert bench.ledger.expire() == 0
    assert poster.counts.posted == 1
    assert events(bench) == [SETTLEMENT.event]
    assert counted(bench) == (15, 0)


def test_a_hold_that_the_ledger_lost_still_has_its_event(bench: Bench) -> None:
    """A failover: nothing can be charged, and the books get the usage, once."""
    poster = spooled(bench)
    replay(poster)
    assert (poster.counts.unknown, poster.counts.posted) == (1, 0)
    assert bench.ledger.settle(SETTLEMENT).status is SettleStatus.REPEATED
    poster.record(Recording(TENANT, "r1", SETTLEMENT.event))
    assert events(bench) == [SETTLEMENT.event]
