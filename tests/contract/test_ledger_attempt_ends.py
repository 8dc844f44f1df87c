"""Attempts that end late, twice or never, what is kept of them, and counters that moved on meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from kong_plugins.adapters.ledger import layout
from kong_plugins.domain.attempts import Attempt, Earlier, Standing
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import Outcome, SettleOutcome, SettleStatus
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.attempt_making import BRIEF_US, CLIENT, counts, either, events, hold, line, reversals, settle
from tests.contract.conftest import ANSWERS_BYTES, GRACE_US, Bench


@either
def test_an_attempt_that_expired_is_tried_again_and_was_not_charged(bench: Bench, attempt: Attempt) -> None:
    """Swept or not: the clock ends it. Nothing is reversed."""
    for hold_id, swept in (("a", True), ("b", False)):
        first = hold(bench, hold_id, attempt, ttl_us=1_000)
        assert first.admitted
        bench.wait_until(first.now_us + 1_000 + GRACE_US)
        assert bench.ledger.expire() == 1 if swept else True
    assert hold(bench, "c", attempt).admitted
    assert settle(bench, "c", Usage(5)).reversed_id is None
    assert [(event_id, posted) for event_id, _, posted in events(bench)] == [
        ("a", ()),
        ("b", ()),
        ("c", (("daily", 5),)),
    ]
    assert settle(bench, "b", Usage(50)).status is SettleStatus.REPEATED
    assert counts(bench) == (5, 0)


def test_a_lapsed_attempt_that_settles_late_counts_like_any_other(bench: Bench) -> None:
    first = hold(bench, "a", ttl_us=1_000)
    bench.wait_until(first.now_us + 1_000)
    assert settle(bench, "a", Usage(5)).status is SettleStatus.POSTED
    assert hold(bench, "b").admitted
    assert settle(bench, "b", Usage(9)).reversed_id == "a"
    assert counts(bench) == (9, 0)


def test_an_attempt_given_up_is_in_no_retrys_way_and_is_charged_once_should_it_run_after_all(bench: Bench) -> None:
    """Its hold was emptied: the reply to it was lost. Whichever settles first, and however late the other."""
    brief = replace(CLIENT, ttl_us=BRIEF_US)
    for late in ("a", "b"):
        first, second = f"{late}-1", f"{late}-2"
        attempt = replace(brief if late == "b" else CLIENT, key=late)
        hold(bench, first, attempt)
        assert bench.ledger.tighten("acme", first, [("daily", 4)])
        assert hold(bench, second, attempt).earlier == Earlier(Standing.RUNNING, first)
        assert bench.ledger.tighten("acme", first, [("daily", 0)])
        assert hold(bench, second, attempt).admitted
        assert settle(bench, first if late == "b" else second, Usage(5), answer=b"x").reversed_id is None
        if late == "b":
            assert hold(bench, "c", attempt).earlier == Earlier(Standing.RUNNING, second)
            bench.wait_until(bench.now() + BRIEF_US + 10_000)
        assert settle(bench, second if late == "b" else first, Usage(9), answer=b"y").reversed_id is not None
    assert counts(bench) == (18, 0)
    assert reversals(bench) == [reversal_id("a-2"), reversal_id("b-1")]


def test_settling_and_holding_again_answer_as_before_and_change_nothing(bench: Bench) -> None:
    """As after a reply that was lost."""
    hold(bench, "a")
    settle(bench, "a", Usage(5))
    second = hold(bench, "b")
    assert hold(bench, "b") == replace(second, repeated=True)
    first = settle(bench, "b", Usage(9), answer=b"x")
    assert settle(bench, "b", Usage(9), answer=b"x") == replace(first, status=SettleStatus.REPEATED)
    assert first.reversed_id == "a"
    assert hold(bench, "b") == replace(second, repeated=True)
    assert settle(bench, "a", Usage(5)) == SettleOutcome(SettleStatus.REPEATED, (("daily", 5),))
    assert Counter(event_id for event_id, _, _ in events(bench)) == Counter(["a", "b", reversal_id("a")])
    assert hold(bench, "c").earlier == Earlier(Standing.FINISHED, "b", b"x")


def test_the_second_settlement_hands_in_the_answer_that_the_first_had_not(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5), outcome=Outcome.COMPLETED)
    assert settle(bench, "a", Usage(5), answer=b"x").status is SettleStatus.REPEATED
    assert hold(bench, "b").earlier == Earlier(Standing.FINISHED, "a", b"x")
    settle(bench, "a", Usage(5), answer=b"y")
    assert hold(bench, "b").earlier == Earlier(Standing.FINISHED, "a", b"x")


def test_an_answer_that_comes_when_the_retry_runs_already_does_not_replace_it(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5), outcome=Outcome.COMPLETED)
    hold(bench, "b")
    settle(bench, "a", Usage(5), answer=b"x")
    assert hold(bench, "c").earlier == Earlier(Standing.RUNNING, "b")
    settle(bench, "b", Usage(5))
    settle(bench, "a", Usage(5), answer=b"x")
    assert hold(bench, "c").admitted


def test_an_aborted_attempt_stays_so_when_the_second_settlement_brings_an_answer(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5))
    settle(bench, "a", Usage(5), answer=b"x")
    assert hold(bench, "b").admitted


def test_the_oldest_answers_make_room_and_their_requests_are_tried_again(bench: Bench) -> None:
    """Charged once still. Another tenant's answers are another tenant's."""
    size = ANSWERS_BYTES // 3 - layout.ANSWER_EXTRA
    keys = [replace(CLIENT, key=f"key-{number}") for number in range(4)]
    hold(bench, "other", keys[0], tenant="globex")
    settle(bench, "other", Usage(1), tenant="globex", answer=b"o" * size)
    for number, attempt in enumerate(keys):
        hold(bench, f"a{number}", attempt)
        settle(bench, f"a{number}", Usage(5), answer=b"%d" % number * size)
    for number in (1, 2, 3):
        kept = Earlier(Standing.FINISHED, f"a{number}", b"%d" % number * size)
        assert hold(bench, "b", keys[number]).earlier == kept
    assert hold(bench, "b", keys[0]).admitted
    assert settle(bench, "b", Usage(5), answer=b"again").reversed_id == "a0"
    assert hold(bench, "c", keys[1]).admitted
    assert hold(bench, "c", keys[0], tenant="globex").earlier == Earlier(Standing.FINISHED, "other", b"o" * size)
    assert counts(bench) == (20, 10)


def test_a_logical_request_is_forgotten_when_nothing_changed_for_so_long(bench: Bench) -> None:
    """From its last change on; then its answer is too, and the key may be used for anything."""
    brief = replace(CLIENT, ttl_us=BRIEF_US)
    hold(bench, "a", brief)
    settle(bench, "a", Usage(5), answer=b"x")
    settled_us = bench.now()
    assert hold(bench, "b", brief).earlier is not None
    bench.wait_until(settled_us + BRIEF_US)
    assert hold(bench, "c", replace(brief, fingerprint="asked-2")).admitted
    assert settle(bench, "c", Usage(5)).reversed_id is None
    assert counts(bench) == (10, 0)


def test_a_logical_request_is_remembered_while_an_attempt_is_open_however_long(bench: Bench) -> None:
    """What was charged before it too."""
    brief = replace(CLIENT, ttl_us=BRIEF_US)
    hold(bench, "a", brief)
    settle(bench, "a", Usage(5))
    second = hold(bench, "b", brief)
    assert second.admitted
    bench.wait_until(second.now_us + BRIEF_US + 10_000)
    assert hold(bench, "c", brief).earlier == Earlier(Standing.RUNNING, "b")
    assert settle(bench, "b", Usage(9)).reversed_id == "a"
    assert counts(bench) == (9, 0)


def test_the_ends_of_holds_may_be_forgotten_before_their_logical_request_is(bench: Bench) -> None:
    """A retry an hour later finds the answer, or the charge, all the same."""
    ledger = bench.ledger
    ledger._terminal_us = 1  # shorter than anyone would have it
    other = replace(CLIENT, key="key-2")
    for hold_id, attempt in (("a", CLIENT), ("b", other)):
        hold(bench, hold_id, attempt)
    settle(bench, "a", Usage(5), answer=b"x")
    settle(bench, "b", Usage(5))
    bench.wait_until(bench.now() + 2_000)
    assert settle(bench, "a", Usage(5)).status is SettleStatus.UNKNOWN
    assert hold(bench, "c").earlier == Earlier(Standing.FINISHED, "a", b"x")
    assert hold(bench, "d", other).admitted
    assert settle(bench, "d", Usage(9)).reversed_id == "b"
    assert counts(bench) == (14, 0)


def test_a_reversal_goes_to_the_window_that_was_charged(bench: Bench) -> None:
    """The next second keeps its count."""
    window = FixedWindow(Unit.SECOND)
    first = hold(bench, "a", CLIENT, line(window=window))
    settle(bench, "a", Usage(50))
    bench.wait_until(first.states[0].reset_us)
    hold(bench, "b", CLIENT, line(window=window))
    hold(bench, "c", None, line(window=window))
    settle(bench, "c", Usage(7))
    assert settle(bench, "b", Usage(60)).reversed_id == "a"
    now_us = bench.now()
    assert counts(bench, window=window) == (67, 0) or now_us // 1_000_000 > first.states[0].reset_us // 1_000_000


def test_a_reversal_goes_to_the_slice_that_was_charged(bench: Bench) -> None:
    """Both leave the rolling window at once: nothing is missing in it when the charge would have left."""
    window = RollingWindow(1)
    hold(bench, "a", CLIENT, line(window=window))
    settle(bench, "a", Usage(500))
    charged_us = bench.now()
    bench.wait_until(charged_us + 500_000)
    hold(bench, "b", CLIENT, line(window=window))
    settle(bench, "b", Usage(600))
    assert counts(bench, window=window) == (600, 0)
    bench.wait_until(charged_us + 1_000_000 + 2 * window.slice_us)
    assert counts(bench, window=window) == (600, 0)


def test_what_has_left_a_rolling_window_is_not_taken_off_it_again(bench: Bench) -> None:
    window = RollingWindow(1)
    hold(bench, "a", CLIENT, line(window=window))
    settle(bench, "a", Usage(500))
    bench.wait_until(bench.now() + 1_000_000 + 2 * window.slice_us)
    hold(bench, "b", CLIENT, line(window=window))
    assert settle(bench, "b", Usage(600)).reversed_id == "a"
    assert counts(bench, window=window) == (600, 0)
    assert events(bench)[-1][2] == (("daily", -500),)


def test_what_flowed_back_into_a_bucket_does_not_flow_back_twice(bench: Bench) -> None:
    """Of 1000 units at 1000 a second, 500 are back after half of one: a reversal brings the rest, and no more than that
    is there to be used."""
    window = TokenBucket(1)
    hold(bench, "a", CLIENT, line(window=window))
    settle(bench, "a", Usage(1000))
    bench.wait_until(bench.now() + 500_000)
    hold(bench, "b", CLIENT, line(window=window))
    hold(bench, "c", None, line(window=window))
    settle(bench, "c", Usage(400))
    before_us = bench.now()
    settle(bench, "b", Usage(1001))
    (state,) = bench.ledger.peek("acme", [line(0, window=window)])
    elapsed = (bench.now() - before_us) * 1000 // 1_000_000 + 1
    assert 1401 - 2 * elapsed - 500 <= state.committed <= 1401 + 1


def test_a_soft_budget_is_charged_once_too(bench: Bench) -> None:
    soft = replace(line(), limit=1, mode=Mode.SOFT)
    for hold_id in "ab":
        assert hold(bench, hold_id, CLIENT, soft).admitted
        settle(bench, hold_id, Usage(500))
    assert counts(bench) == (500, 0)
