"""What every ledger promises of leases, and of requests that were admitted without it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.attempts import Attempt, Standing
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import HoldRequest, Line, Registration, SettleStatus
from kong_plugins.domain.leases import LeaseRequest
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.contract.conftest import TERMINAL_US, Bench
from tests.contract.test_ledger_contract import LONG_US, counts, events, hold, kinds, line, settle

HOUR_US = 3_600_000_000
TURNS = count(1)


def lease(bench: Bench, *lines: Line, node: str = "node-1", percent: int = 10, ttl_us: int = LONG_US):
    return bench.ledger.lease(LeaseRequest("acme", node, lines, percent, ttl_us, next(TURNS)))


def amounts(bench: Bench, *lines: Line, **options) -> list[int]:
    return [each.amount for each in lease(bench, *lines, **options).lines]


def register(
    bench: Bench, hold_id: str, *lines: Line, node: str = "node-1", at_us: int | None = None, **options
) -> bool:
    request = HoldRequest("acme", hold_id, lines, options.pop("ttl_us", LONG_US), **options)
    return bench.ledger.register(Registration(request, bench.now() if at_us is None else at_us, node))


@kinds
def test_a_lease_is_a_part_of_what_is_left_and_counts_as_held(bench: Bench, window) -> None:
    hold(bench, "a", line(20, window=window))
    outcome = lease(bench, line(window=window))
    assert (outcome.lines[0].amount, outcome.lines[0].wanted) == (8, 8)
    assert counts(bench, line(window=window)) == (0, 28)
    assert outcome.lines[0].state.held == 28
    assert not hold(bench, "b", line(73, window=window)).admitted
    assert hold(bench, "c", line(72, window=window)).admitted


def test_asking_again_changes_only_what_has_changed(bench: Bench) -> None:
    """Ten percent of a hundred are ten, whoever has them; once ninety are gone it is ten percent of ten."""
    assert amounts(bench, line()) == [10]
    assert amounts(bench, line()) == [10]
    hold(bench, "a", line(90))
    assert amounts(bench, line()) == [1]
    assert counts(bench, line()) == (0, 91)


def test_what_is_needed_is_kept_and_nothing_is_leased_that_is_not_there(bench: Bench) -> None:
    assert amounts(bench, line(40)) == [40]
    hold(bench, "a", line(55))
    assert amounts(bench, line(40)) == [40]
    assert amounts(bench, line(60)) == [45]
    assert counts(bench, line()) == (0, 100)
    assert amounts(bench, line(10, limit=20)) == [10]  # an edit below what is used gives nothing more
    assert lease(bench, line(10, limit=20)).lines[0].wanted == 0  # and leaves nothing to want


def test_what_a_node_does_not_name_it_gives_back(bench: Bench) -> None:
    assert amounts(bench, line(), line(key="other", limit=1_000)) == [10, 100]
    assert amounts(bench, line(key="other", limit=1_000)) == [100]
    assert counts(bench, line()) == (0, 0)
    lease(bench)
    assert counts(bench, line(key="other")) == (0, 0)


def test_leases_of_two_nodes_stand_beside_each_other(bench: Bench) -> None:
    assert amounts(bench, line(), node="node-1") == [10]
    assert amounts(bench, line(), node="node-2") == [9]
    lease(bench, node="node-1")
    assert counts(bench, line()) == (0, 9)


def test_lines_that_never_refuse_are_not_leased_but_told(bench: Bench) -> None:
    hold(bench, "a", line(30, mode=Mode.SOFT))
    (told,) = lease(bench, line(mode=Mode.SOFT)).lines
    assert (told.amount, told.wanted, told.state.held) == (0, 0, 30)


def test_a_fixed_windows_lease_ends_with_it(bench: Bench) -> None:
    """The node is told when; the next window is another counter, of which it has nothing."""
    second = FixedWindow(Unit.SECOND)
    outcome = lease(bench, line(window=second))
    until_us = outcome.lines[0].until_us
    assert until_us is not None
    assert outcome.now_us < until_us == outcome.lines[0].state.reset_us
    bench.wait_until(until_us)
    assert counts(bench, line(window=second)) == (0, 0)
    assert amounts(bench, line(window=second)) == [10]


def ask(bench: Bench, turn: int, least: int) -> list[int]:
    request = LeaseRequest("acme", "node-1", (line(least),), 10, LONG_US, turn)
    return [each.amount for each in bench.ledger.lease(request).lines]


def test_a_question_that_comes_after_a_later_one_changes_nothing(bench: Bench) -> None:
    """It was on its way when its node gave it up: what the node was told since holds."""
    assert ask(bench, 2, 40) == [40]
    with pytest.raises(LedgerUnavailable):
        ask(bench, 1, 0)
    assert counts(bench, line()) == (0, 40)
    assert ask(bench, 3, 0) == [10]


def test_the_same_question_again_is_told_what_is_leased_and_changes_nothing(bench: Bench) -> None:
    """Its node may have given away all that it was told of first, whatever there is room for by now."""
    assert ask(bench, 1, 0) == [10]
    hold(bench, "a", line(85))
    assert ask(bench, 1, 0) == [10]
    assert counts(bench, line()) == (0, 95)
    assert register(bench, "b", line(4))
    assert ask(bench, 1, 0) == [6]
    assert counts(bench, line()) == (0, 95)
    assert ask(bench, 2, 0) == [1]


def test_a_question_that_comes_after_its_lease_was_given_up_leases_nothing(bench: Bench) -> None:
    bench.ledger.lease(LeaseRequest("acme", "node-1", (line(),), 10, LONG_US, 1))
    bench.ledger.lease(LeaseRequest("acme", "node-1", (), 0, 1, 3))
    with pytest.raises(LedgerUnavailable):
        bench.ledger.lease(LeaseRequest("acme", "node-1", (line(),), 10, LONG_US, 2))
    assert counts(bench, line()) == (0, 0)


def test_a_line_that_never_refuses_takes_nothing_out_of_a_lease(bench: Bench) -> None:
    """Another row may count the same budget: its node has not reckoned with that."""
    assert amounts(bench, line(), percent=50) == [50]
    assert register(bench, "a", line(20, mode=Mode.SHADOW))
    assert counts(bench, line()) == (0, 70)


@kinds
def test_a_lease_that_is_not_renewed_is_over(bench: Bench, window) -> None:
    lease(bench, line(window=window), ttl_us=20_000)
    bench.wait_until(bench.now() + 25_000)
    bench.ledger.expire()
    assert counts(bench, line(window=window)) == (0, 0)
    assert amounts(bench, line(window=window)) == [10]


@kinds
def test_registering_moves_a_request_from_the_lease_into_a_hold(bench: Bench, window) -> None:
    """What is held stays the same, and the settlement takes the request's part of it out."""
    lease(bench, line(window=window), percent=50)
    assert register(bench, "a", line(20, window=window))
    assert counts(bench, line(window=window)) == (0, 50)
    assert settle(bench, "a", Usage(5, 6)).posted == (("daily", 11),)
    assert counts(bench, line(window=window)) == (11, 30)
    assert [event[0] for event in events(bench)] == ["a"]


def test_what_the_lease_has_not_got_is_held_on_top(bench: Bench) -> None:
    """It runs already: after a failover, say, that forgot the lease."""
    lease(bench, line())
    assert register(bench, "a", line(25))
    assert counts(bench, line()) == (0, 25)
    assert register(bench, "b", line(5), node="node-2")
    assert counts(bench, line()) == (0, 30)
    hold(bench, "c", line(70))
    assert register(bench, "d", line(8))
    assert counts(bench, line()) == (0, 108)


def test_registering_again_changes_nothing(bench: Bench) -> None:
    """While it is open, and when it has ended."""
    lease(bench, line(), percent=50)
    for _ in range(2):
        assert register(bench, "a", line(20))
    assert counts(bench, line()) == (0, 50)
    settle(bench, "a", Usage(1))
    assert register(bench, "a", line(20))
    assert counts(bench, line()) == (1, 30)
    assert settle(bench, "a", Usage(1)).status is SettleStatus.REPEATED
    assert hold(bench, "a", line(20)).repeated


def test_a_request_that_was_held_is_not_registered(bench: Bench) -> None:
    hold(bench, "a", line(20))
    assert register(bench, "a", line(20))
    assert counts(bench, line()) == (0, 20)


@pytest.mark.parametrize("out_of_time_us", [-TERMINAL_US // 2 - 1_000_000, TERMINAL_US // 2 + 1_000_000])
def test_one_that_comes_too_late_is_not_held(bench: Bench, out_of_time_us: int) -> None:
    """Its end may have been forgotten by then: it would be charged twice. Nor if a clock is as far ahead."""
    assert not register(bench, "a", line(20), at_us=bench.now() + out_of_time_us)
    assert counts(bench, line()) == (0, 0)
    assert settle(bench, "a", Usage(5)).status is SettleStatus.UNKNOWN


def test_it_counts_in_the_window_it_was_admitted_in(bench: Bench) -> None:
    second = FixedWindow(Unit.SECOND)
    (before,) = bench.ledger.lease(LeaseRequest("acme", "node-1", (line(window=second),), 50, LONG_US, 1)).lines
    admitted_us = before.state.reset_us - 1
    bench.wait_until(before.state.reset_us)
    assert register(bench, "a", line(20, window=second), at_us=admitted_us)
    assert counts(bench, line(window=second)) == (0, 0)
    assert settle(bench, "a", Usage(7)).posted == (("daily", 7),)
    assert counts(bench, line(window=second)) == (0, 0)


def test_one_that_nobody_settles_ends_by_its_own_clock(bench: Bench) -> None:
    assert register(bench, "a", line(20), ttl_us=10_000, event=b'{"expired":"a"}')
    bench.wait_until(bench.now() + 12_000)
    bench.ledger.expire()
    assert counts(bench, line()) == (0, 0)
    bench.wait_until(bench.now() + 160_000)
    bench.ledger.expire()
    assert events(bench) == [("a", b'{"expired":"a"}', ())]


def test_a_retry_finds_the_attempt_that_was_registered(bench: Bench) -> None:
    tried = Attempt("key", "asked", derived=True, retry=False, ttl_us=LONG_US)
    assert register(bench, "a", line(20), attempt=tried)
    again = HoldRequest("acme", "b", (line(20),), LONG_US, attempt=replace(tried, retry=True))
    earlier = bench.ledger.hold(again).earlier
    assert earlier is not None
    assert (earlier.standing, earlier.hold_id) == (Standing.RUNNING, "a")


@pytest.mark.parametrize(("percent", "ttl_us"), [(-1, 1), (51, 1), (10, 0)])
def test_a_lease_that_makes_no_sense_is_none(percent: int, ttl_us: int) -> None:
    with pytest.raises(ValueError, match="lease"):
        LeaseRequest("acme", "node", (), percent, ttl_us, 1)
