"""Counters and the postings that events tell of: by window, to the unit, also after the window."""

from __future__ import annotations

from collections.abc import Sequence

from kong_plugins.adapters.ledger import MemoryLedger, layout
from kong_plugins.application.reconcile_events import Range
from kong_plugins.application.reconcile_ledger import (
    Counter,
    CounterCompared,
    CounterReader,
    Line,
    Posting,
    Postings,
    Why,
    compare_counters,
    moved,
)
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Settlement
from kong_plugins.domain.holds import Line as HeldLine
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, Unit, WindowSpec, window_at

DAY_US = 86_400_000_000
SLACK = 1_000_000
DAY = FixedWindow(Unit.DAY, "Europe/Berlin")
NOON = window_at(DAY, 1_795_000_000_000_000).start_us + DAY_US // 2


class Booked:
    """Postings in memory: tenant, line, id, amount, started."""

    def __init__(self, *postings: Posting) -> None:
        self._postings = postings

    def postings(self, start_us: int, end_us: int, slack_us: int) -> Postings:
        sums: dict[Line, int] = {}
        near = []
        for each in self._postings:
            if start_us + slack_us <= each.started_us < end_us - slack_us:
                sums[each.tenant, each.line] = sums.get((each.tenant, each.line), 0) + each.amount
            elif start_us - slack_us <= each.started_us < end_us + slack_us:
                near.append(each)
        return Postings(sums, near)


def posting(amount: int, at_us: int, event_id: str = "e", tenant: str = "t", line: str = "daily") -> Posting:
    return Posting(tenant, line, event_id, amount, at_us)


def counter(least: int, most: int | None = None, granted: int = 0, tenant: str = "t") -> Counter:
    return Counter(tenant, "daily", "fixed day UTC 1", 0, DAY_US, least, most or least, granted=granted)


def one(counters: Sequence[Counter], booked: Booked, waiting: Sequence[Posting] = ()) -> CounterCompared:
    (found,) = compare_counters(counters, booked, waiting, SLACK)
    return found


def test_a_counter_is_its_windows_postings() -> None:
    """Reversals are negative, grants go back on, other windows do not count."""
    booked = Booked(posting(50, 5 * SLACK), posting(-20, 6 * SLACK), posting(99, DAY_US + 5 * SLACK))
    assert one([counter(30)], booked).unexplained == 0
    assert one([counter(10, granted=20)], booked).difference == 0
    assert one([counter(31)], booked).unexplained == 1
    assert one([counter(29)], booked).unexplained == -1


def test_what_waits_explains_exactly_itself() -> None:
    """And nothing else."""
    found = one([counter(80)], Booked(posting(50, 5 * SLACK)), [posting(30, 7 * SLACK, "late")])
    assert (found.difference, found.unexplained) == (30, 0)
    assert [(each.why, each.event_id, each.amount) for each in found.explanations] == [
        (Why.UNDELIVERED, "late", Range(30, 30))
    ]
    assert one([counter(50)], Booked(posting(50, 5 * SLACK)), [posting(30, 7 * SLACK, "late")]).unexplained == -30


def test_a_request_at_midnight_may_be_held_on_either_side() -> None:
    """It began just before; its hold may have come just after."""
    booked = Booked(posting(50, 5 * SLACK), posting(7, -SLACK // 2, "before"), posting(9, DAY_US - 1, "last"))
    for committed in (50, 57, 59, 66):
        found = one([counter(committed)], booked)
        assert found.unexplained == 0, committed
        assert {each.event_id for each in found.explanations} == {"before", "last"}
    assert one([counter(67)], booked).unexplained == 1


def test_a_counter_that_moved_while_it_was_read_is_a_range() -> None:
    """Whatever moved is in the books or is not, and a grant in between is no usage."""
    before, after = counter(50), counter(80)
    assert one(moved([before], [after]), Booked(posting(60, 5 * SLACK))).unexplained == 0
    assert one(moved([before], [after]), Booked(posting(49, 5 * SLACK))).unexplained == 1
    granted = counter(10, granted=40)
    assert one(moved([before], [granted]), Booked(posting(50, 5 * SLACK))).unexplained == 0


def test_a_lost_counter_is_found_by_those_of_the_same_budget() -> None:
    """Its tenant's events posted to it."""
    booked = Booked(posting(50, 5 * SLACK), posting(60, 5 * SLACK, tenant="other"))
    found = {each.counter.tenant: each.unexplained for each in compare_counters([counter(50)], booked, (), SLACK)}
    assert found == {"t": 0, "other": -60}


class HandClock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.now_us = NOON

    def __call__(self) -> int:
        return self.now_us


class Kept:
    """The in-memory ledger's counters, also those of windows that are over."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger

    def committed(self, counters: Sequence[tuple[str, str, FixedWindow, int]]) -> list[int | None]:
        found: list[int | None] = []
        for tenant, line, window, start_us in counters:
            kept = self._ledger._counters.find(f"{layout.counter_path(tenant, line, window)}:{start_us}")
            found.append(kept.counter.committed if kept else None)
        return found


def use(ledger: MemoryLedger, hold_id: str, window: WindowSpec, line: str = "daily", tenant: str = "t") -> None:
    held = HeldLine(line, window, TOTAL, 1000, 100)
    ledger.hold(HoldRequest(tenant, hold_id, (held,), 60_000_000))
    ledger.settle(Settlement(tenant, hold_id, Usage(7, 3), Evidence.EXACT, b"{}"))


def reader(ledger: MemoryLedger, start_us: int) -> CounterReader:
    return CounterReader(ledger, Kept(ledger), start_us, start_us + DAY_US, "Europe/Berlin")


def test_todays_counters_are_read_with_their_windows() -> None:
    """Calendar windows that overlap the day; what moves on is left out and said so."""
    clock = HandClock()
    ledger = MemoryLedger(clock)
    start_us = window_at(DAY, NOON).start_us
    use(ledger, "h1", DAY)
    use(ledger, "h2", FixedWindow(Unit.MONTH), "monthly")
    use(ledger, "h3", RollingWindow(3600), "hour")
    read = reader(ledger, start_us).read((), clock.now_us)
    month = window_at(FixedWindow(Unit.MONTH), NOON)
    assert {(each.line, each.start_us, each.end_us, each.least) for each in read.counters} == {
        ("daily", start_us, start_us + DAY_US, 10),
        ("monthly", month.start_us, month.end_us, 10),
    }
    assert [count for why, count in read.skipped.items() if why.startswith("rolling 3600")] == [1]


def test_what_the_ledger_has_forgotten_is_said() -> None:
    """Not of windows that move on: those are never compared."""
    clock = HandClock()
    ledger = MemoryLedger(clock)
    use(ledger, "h1", DAY)
    use(ledger, "h2", RollingWindow(3600), "hour")
    lines = [("t", "daily"), ("t", "hour"), ("t", "old")]
    assert reader(ledger, window_at(DAY, NOON).start_us).read(lines, clock.now_us).gone == {("t", "old")}


def test_yesterdays_counters_are_read_by_name() -> None:
    """By the budget's window today, or by the day's own time zone where nobody has used it since."""
    clock = HandClock()
    ledger = MemoryLedger(clock)
    start_us = window_at(DAY, NOON).start_us
    use(ledger, "h1", DAY)
    use(ledger, "h2", DAY, tenant="gone")
    clock.now_us += DAY_US
    use(ledger, "h3", DAY)
    use(ledger, "h4", DAY)
    read = reader(ledger, start_us).read([("t", "daily"), ("gone", "daily")], clock.now_us)
    assert {(each.tenant, each.start_us, each.least) for each in read.counters} == {
        ("t", start_us, 10),
        ("gone", start_us, 10),
    }
    alone = MemoryLedger(clock)
    clock.now_us = NOON
    use(alone, "h1", DAY)
    clock.now_us += DAY_US
    assert [each.least for each in reader(alone, start_us).read([("t", "daily")], clock.now_us).counters] == [10]
