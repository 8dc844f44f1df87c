"""Holds that nobody settled end by themselves, without anybody asking."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from kong_plugins.adapters.ledger import MemoryLedger
from kong_plugins.adapters.sweeper import Sweeper
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.windows import FixedWindow, Unit

SECOND_US = 1_000_000


class Clock:
    now_us = 1_795_000_000 * SECOND_US

    def __call__(self) -> int:
        return self.now_us


class FlakyLedger(MemoryLedger):
    """Out of reach for its first sweep."""

    away = True

    def expire(self) -> int:
        if self.away:
            self.away = False
            raise LedgerUnavailable("away")
        return super().expire()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> FlakyLedger:
    return FlakyLedger(clock, grace_us=SECOND_US)


@pytest.fixture
def sweeper(ledger: FlakyLedger) -> Iterator[Sweeper]:
    sweeper = Sweeper(ledger, every_s=0.001)
    sweeper.start()
    yield sweeper
    sweeper.stop()


def test_an_abandoned_hold_gets_its_event_although_nobody_asks(
    sweeper: Sweeper, ledger: FlakyLedger, clock: Clock
) -> None:
    """Past its time and grace, a hold is posted as expired by the sweep alone, also after a sweep that failed."""
    line = Line("daily", FixedWindow(Unit.DAY), TOTAL, 1000, 100)
    assert ledger.hold(HoldRequest("gone", "h1", (line,), ttl_us=SECOND_US)).admitted
    partition = partition_of("gone")
    assert ledger.outbox(partition) == ()
    for _ in range(2):  # it lapses, then its grace ends
        clock.now_us += 2 * SECOND_US
        gevent.sleep(0.02)
    with gevent.Timeout(5):
        while not ledger.outbox(partition):
            gevent.sleep(0.005)
    (entry,) = ledger.outbox(partition)
    assert entry.event_id == "h1"
    assert b'"held"' in entry.event


def test_a_stopped_sweeper_sweeps_no_more(sweeper: Sweeper, ledger: FlakyLedger, clock: Clock) -> None:
    """After stop() nothing is touched."""
    sweeper.stop()
    line = Line("daily", FixedWindow(Unit.DAY), TOTAL, 1000, 100)
    ledger.hold(HoldRequest("gone", "h1", (line,), ttl_us=SECOND_US))
    clock.now_us += 10 * SECOND_US
    gevent.sleep(0.02)
    assert ledger.outbox(partition_of("gone")) == ()
