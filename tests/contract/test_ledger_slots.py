"""Slots that every ledger keeps: how many of a tenant's requests are open at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kong_plugins.domain.attempts import Attempt, Standing
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.concurrency import Slots, SlotState
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.contract.conftest import Bench

LONG_US = 60_000_000
SHORT_US = 20_000
TWO = Slots("requests", 2, LONG_US)
MODEL = Slots("requests|model=r1", 1, LONG_US)
DAILY = Line("daily", FixedWindow(Unit.MONTH), TOTAL, 100, 10)


def hold(
    bench: Bench,
    hold_id: str,
    *slots: Slots,
    lines: tuple[Line, ...] = (DAILY,),
    tenant: str = "acme",
    ttl_us: int = LONG_US,
    attempt: Attempt | None = None,
) -> HoldOutcome:
    return bench.ledger.hold(HoldRequest(tenant, hold_id, lines, ttl_us, attempt=attempt, slots=slots))


def settle(bench: Bench, hold_id: str, tenant: str = "acme") -> None:
    bench.ledger.settle(Settlement(tenant, hold_id, Usage(3, 4), Evidence.EXACT, b"{}"))


def held(bench: Bench) -> int:
    (state,) = bench.ledger.peek("acme", [DAILY])
    return state.held


def test_no_more_are_open_than_there_are_slots(bench: Bench) -> None:
    """The third of two is refused, its budget not even looked at, and a settled one makes room."""
    assert hold(bench, "a", TWO).slots == (SlotState("requests", 2, 1),)
    assert hold(bench, "b", TWO).slots == (SlotState("requests", 2, 2),)
    refused = hold(bench, "c", TWO)
    assert not refused.admitted
    assert refused.states == ()
    assert refused.slots == (SlotState("requests", 2, 2, short=True),)
    assert held(bench) == 20
    settle(bench, "a")
    assert hold(bench, "c", TWO).admitted


def test_all_slots_are_taken_or_none(bench: Bench) -> None:
    """A model's slot that is taken leaves the tenant's alone, and so does a budget that refuses."""
    assert hold(bench, "a", TWO, MODEL).admitted
    refused = hold(bench, "b", TWO, MODEL)
    assert [state.short for state in refused.slots] == [False, True]
    over = hold(bench, "c", TWO, lines=(replace(DAILY, amount=200),))
    assert not over.admitted
    assert over.states[0].short
    assert over.slots == (SlotState("requests", 2, 1),)
    assert hold(bench, "d", TWO).slots[0].taken == 2


def test_another_tenants_requests_take_no_slot_of_mine(bench: Bench) -> None:
    """Also of a tenant whose name ends where a key begins."""
    for tenant in ("acme", "globex", "acme/requests"):
        assert hold(bench, "a", TWO, tenant=tenant).slots[0].taken == 1


def test_an_edited_limit_counts_what_is_open(bench: Bench) -> None:
    hold(bench, "a", TWO)
    hold(bench, "b", TWO)
    assert hold(bench, "c", replace(TWO, limit=3)).slots[0].taken == 3
    assert not hold(bench, "d", replace(TWO, limit=1)).admitted


def test_asking_again_answers_as_the_first_time_and_takes_no_second_slot(bench: Bench) -> None:
    """While the request is open, and after its end."""
    first = hold(bench, "a", TWO)
    hold(bench, "b", TWO)
    assert hold(bench, "a", TWO) == replace(first, repeated=True)
    settle(bench, "a")
    assert hold(bench, "a", TWO) == replace(first, repeated=True)
    assert hold(bench, "c", TWO).slots[0].taken == 2


def test_a_slot_that_nobody_gives_back_ends_by_its_own_clock(bench: Bench) -> None:
    """Long before its hold: its budget is still held, and settling it late is no second giving back."""
    soon = replace(TWO, limit=1, ttl_us=SHORT_US)
    now_us = hold(bench, "a", soon).now_us
    assert not hold(bench, "b", soon).admitted
    bench.wait_until(now_us + SHORT_US)
    assert hold(bench, "b", replace(soon, ttl_us=LONG_US)).admitted
    assert held(bench) == 20
    settle(bench, "a")
    assert not hold(bench, "c", soon).admitted


def test_a_lapsed_hold_gives_its_slot_back(bench: Bench) -> None:
    """Whatever the slot's own clock says."""
    one = replace(TWO, limit=1)
    now_us = hold(bench, "a", one, ttl_us=SHORT_US).now_us
    bench.wait_until(now_us + SHORT_US)
    assert hold(bench, "b", one).admitted


@pytest.mark.parametrize("lines", [(DAILY,), ()])
def test_a_hold_that_was_given_up_gives_its_slot_back(bench: Bench, lines: tuple[Line, ...]) -> None:
    """Emptied, with a budget and without; lowered only, it keeps it."""
    one = replace(TWO, limit=1)
    hold(bench, "a", one, lines=lines)
    if lines:
        assert bench.ledger.tighten("acme", "a", [("daily", 1)])
        assert not hold(bench, "b", one).admitted
    assert bench.ledger.tighten("acme", "a", [(line.key, 0) for line in lines])
    assert hold(bench, "b", one).admitted


def test_a_retry_hears_of_its_earlier_attempt_before_it_hears_of_slots(bench: Bench) -> None:
    """The attempt that runs has the only slot; its retry is told that it runs, not that it is too many."""
    one = replace(TWO, limit=1)
    attempt = Attempt("k", "f", derived=False, retry=True, ttl_us=LONG_US)
    assert hold(bench, "a", one, attempt=attempt).admitted
    again = hold(bench, "b", one, attempt=attempt)
    assert again.earlier is not None
    assert again.earlier.standing is Standing.RUNNING


def test_a_hold_without_slots_takes_none(bench: Bench) -> None:
    assert hold(bench, "a", replace(TWO, limit=1)).admitted
    outcome = hold(bench, "b")
    assert outcome.admitted
    assert outcome.slots == ()
