"""What every ledger promises of attempts: a logical request is charged once, as the dearest of its attempts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from kong_plugins.adapters.ledger import layout
from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier, Standing
from kong_plugins.domain.budgets import TOTAL, Mode, Weights
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Outcome, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.conftest import ANSWERS_BYTES, GRACE_US, Bench

LONG_US = 60_000_000
BRIEF_US = 250_000  # to be waited for, yet longer than a few operations take on a busy machine
MONTH = FixedWindow(Unit.MONTH, "Europe/Berlin", 15)
KINDS = [MONTH, RollingWindow(3600), TokenBucket(2_678_400)]  # so slow a bucket gives nothing back during a test
kinds = pytest.mark.parametrize("window", KINDS, ids=["fixed", "rolling", "bucket"])
CLIENT = Attempt("key-1", "asked-1", derived=False, retry=False, ttl_us=LONG_US)
FIRST = Attempt("digest-1", "asked-1", derived=True, retry=False, ttl_us=LONG_US)
AGAIN = replace(FIRST, retry=True)
either = pytest.mark.parametrize("attempt", [CLIENT, AGAIN], ids=["client's key", "derived key"])


def line(amount: int = 10, *, limit: int = 1000, key: str = "daily", window=MONTH, weights: Weights = TOTAL) -> Line:
    return Line(key, window, weights, limit, amount)


def hold(
    bench: Bench, hold_id: str, attempt: Attempt | None = CLIENT, *lines: Line, ttl_us: int = LONG_US, tenant="acme"
) -> HoldOutcome:
    return bench.ledger.hold(HoldRequest(tenant, hold_id, lines or (line(),), ttl_us, attempt=attempt))


def settle(bench: Bench, hold_id: str, usage: Usage = NO_USAGE, tenant: str = "acme", **more) -> SettleOutcome:
    """With an answer it is completed, without one it was aborted, unless told otherwise."""
    answer = more.pop("answer", b"")
    more.setdefault("outcome", Outcome.COMPLETED if answer else Outcome.ABORTED)
    more.setdefault("kept", AnswerKept.KEPT if answer else AnswerKept.NONE)
    more.setdefault("reversal", b'{"reverses":"%b"}' % hold_id.encode())
    return bench.ledger.settle(
        Settlement(
            tenant, hold_id, usage, Evidence.EXACT, b'{"settled":"%b"}' % hold_id.encode(), answer=answer, **more
        )
    )


def counts(
    bench: Bench, *, tenant: str = "acme", window=MONTH, limit: int = 1000, key: str = "daily"
) -> tuple[int, int]:
    (state,) = bench.ledger.peek(tenant, [line(0, window=window, limit=limit, key=key)])
    return state.committed, state.held


def events(bench: Bench, tenant: str = "acme"):
    return [(e.event_id, e.event, e.posted) for e in bench.ledger.outbox(partition_of(tenant), count=1000)]


def reversals(bench: Bench) -> list[str]:
    return [event_id for event_id, _, _ in events(bench) if event_id.startswith("reversal:")]


@either
def test_an_attempt_that_runs_or_lapsed_stands_in_the_way_of_the_next(bench: Bench, attempt: Attempt) -> None:
    """Nothing is held for the next; its own request id is answered as ever."""
    first = hold(bench, "a", attempt)
    assert first.admitted
    outcome = hold(bench, "b", attempt)
    assert outcome == HoldOutcome(False, (), outcome.now_us, earlier=Earlier(Standing.RUNNING, "a"))
    assert hold(bench, "a", attempt) == replace(first, repeated=True)
    assert counts(bench) == (0, 10)
    other = replace(attempt, key="key-2")
    bench.wait_until(hold(bench, "c", other, ttl_us=1_000).now_us + 1_000)
    assert hold(bench, "d", other).earlier == Earlier(Standing.RUNNING, "c")
    assert counts(bench) == (0, 10)


@either
def test_a_finished_attempt_hands_its_answer_to_every_later_one(bench: Bench, attempt: Attempt) -> None:
    """Byte for byte, without a hold or a charge; it is bytes of any kind."""
    answer = bytes(range(256)) * 8
    hold(bench, "a", attempt)
    settle(bench, "a", Usage(3, 4), answer=answer)
    for hold_id in ("b", "c"):
        outcome = hold(bench, hold_id, attempt)
        assert not outcome.admitted
        assert outcome.earlier == Earlier(Standing.FINISHED, "a", answer)
    assert hold(bench, "a", attempt).repeated
    assert counts(bench) == (7, 0)
    assert len(events(bench)) == 1


def test_an_answer_too_large_to_keep_is_gone_for_a_clients_key(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(3), outcome=Outcome.COMPLETED, kept=AnswerKept.TOO_LARGE)
    assert hold(bench, "b").earlier == Earlier(Standing.GONE, "a")


def test_an_answer_beyond_what_a_tenant_may_keep_is_too_large(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(3), answer=b"x" * ANSWERS_BYTES)
    assert hold(bench, "b").earlier == Earlier(Standing.GONE, "a")


def test_an_answer_too_large_to_keep_does_not_stop_a_retry_under_a_derived_key(bench: Bench) -> None:
    """Nobody chose that key: it is a new logical request, and both are charged."""
    hold(bench, "a", FIRST)
    settle(bench, "a", Usage(3), outcome=Outcome.COMPLETED, kept=AnswerKept.TOO_LARGE)
    assert hold(bench, "b", AGAIN).admitted
    assert settle(bench, "b", Usage(4)).reversed_id is None
    assert counts(bench) == (7, 0)


@pytest.mark.parametrize("outcome", [Outcome.ABORTED, Outcome.FAILED])
@either
def test_after_an_abort_or_a_failure_the_retry_runs_and_the_tenant_pays_once(
    bench: Bench, attempt: Attempt, outcome: Outcome
) -> None:
    """The partial charge is reversed with its own reversal event, right after the event of what replaces it."""
    hold(bench, "a", attempt)
    assert settle(bench, "a", Usage(3, 4), outcome=outcome).reversed_id is None
    assert counts(bench) == (7, 0)
    assert hold(bench, "b", attempt).admitted
    assert settle(bench, "b", Usage(3, 20), answer=b"whole") == SettleOutcome(
        SettleStatus.POSTED, (("daily", 23),), "a"
    )
    assert counts(bench) == (23, 0)
    assert events(bench) == [
        ("a", b'{"settled":"a"}', (("daily", 7),)),
        ("b", b'{"settled":"b"}', (("daily", 23),)),
        (reversal_id("a"), b'{"reverses":"a"}', (("daily", -7),)),
    ]
    assert hold(bench, "c", attempt).earlier == Earlier(Standing.FINISHED, "b", b"whole")


@kinds
def test_the_cheaper_of_two_attempts_is_reversed_also_when_it_is_the_later(bench: Bench, window) -> None:
    hold(bench, "a", CLIENT, line(window=window))
    settle(bench, "a", Usage(3, 40))
    hold(bench, "b", CLIENT, line(window=window))
    assert settle(bench, "b", Usage(3, 1)) == SettleOutcome(SettleStatus.POSTED, (("daily", 4),), "b")
    assert counts(bench, window=window) == (43, 0)
    assert events(bench)[-1] == (reversal_id("b"), b'{"reverses":"b"}', (("daily", -4),))
    hold(bench, "c", CLIENT, line(window=window))
    assert settle(bench, "c", Usage(3, 50)).reversed_id == "a"
    charged, _ = counts(bench, window=window)
    assert charged == 53 or (isinstance(window, TokenBucket) and charged == 54)  # what may have flowed back rounds up
    assert reversals(bench) == [reversal_id("b"), reversal_id("a")]


def test_of_two_equally_dear_attempts_the_earlier_is_reversed(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5, 5))
    hold(bench, "b")
    assert settle(bench, "b", Usage(5, 5)).reversed_id == "a"
    assert counts(bench) == (10, 0)


def test_dearer_is_counted_in_tokens_whatever_a_budget_makes_of_them(bench: Bench) -> None:
    """The attempt with more tokens stays, on every line, also on one where it is the cheaper."""
    prompts = line(key="prompts", weights=Weights(100, 0, 1))
    hold(bench, "a", CLIENT, line(), prompts)
    settle(bench, "a", Usage(5, 0))
    hold(bench, "b", CLIENT, line(), prompts)
    assert settle(bench, "b", Usage(5, 3, cached=5)).reversed_id == "a"
    assert counts(bench) == (8, 0)
    assert counts(bench, key="prompts") == (3, 0)


def test_an_attempt_that_used_nothing_leaves_nothing_to_reverse(bench: Bench) -> None:
    """Whether it is the earlier or the later one."""
    hold(bench, "a")
    settle(bench, "a", NO_USAGE)
    hold(bench, "b")
    assert settle(bench, "b", Usage(5)).reversed_id is None
    hold(bench, "c")
    assert settle(bench, "c", NO_USAGE).reversed_id is None
    assert counts(bench) == (5, 0)
    assert reversals(bench) == []


def test_an_attempt_without_tokens_that_costs_by_the_request_is_reversed_too(bench: Bench) -> None:
    calls = line(1, key="calls", weights=Weights(0, 0, 0, request=1))
    for hold_id, usage in (("a", NO_USAGE), ("b", Usage(5)), ("c", NO_USAGE)):
        hold(bench, hold_id, CLIENT, calls)
        settle(bench, hold_id, usage)
        assert counts(bench, key="calls") == (1, 0)
    assert reversals(bench) == [reversal_id("a"), reversal_id("c")]


def test_what_no_event_can_take_back_stays_charged(bench: Bench) -> None:
    """A settlement that brought no reversal: counters and books still say the same."""
    hold(bench, "a")
    settle(bench, "a", Usage(5), reversal=b"")
    hold(bench, "b")
    assert settle(bench, "b", Usage(7)).reversed_id is None
    hold(bench, "c")
    assert settle(bench, "c", Usage(1), reversal=b"").reversed_id is None
    assert counts(bench) == (13, 0)
    hold(bench, "d")
    assert settle(bench, "d", Usage(8)).reversed_id == "b"
    assert counts(bench) == (14, 0)


def test_a_finished_attempt_whose_answer_was_not_captured_is_tried_again(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5), outcome=Outcome.COMPLETED)
    assert hold(bench, "b").admitted
    assert settle(bench, "b", Usage(5), answer=b"x").reversed_id == "a"
    assert counts(bench) == (5, 0)


def test_an_answer_of_an_attempt_that_did_not_complete_is_not_kept(bench: Bench) -> None:
    hold(bench, "a")
    settle(bench, "a", Usage(5), answer=b"half", outcome=Outcome.ABORTED)
    assert hold(bench, "b").admitted


def test_the_same_key_for_something_else_is_told_so_whatever_became_of_the_first(bench: Bench) -> None:
    other = replace(CLIENT, fingerprint="asked-2")
    hold(bench, "a")
    assert hold(bench, "b", other).earlier == Earlier(Standing.MISMATCH, "a")
    settle(bench, "a", Usage(5), answer=b"x")
    assert hold(bench, "b", other).earlier == Earlier(Standing.MISMATCH, "a")
    assert hold(bench, "b", replace(other, key="key-2")).admitted


def test_keys_of_other_tenants_and_of_the_other_kind_are_other_keys(bench: Bench) -> None:
    hold(bench, "a")
    assert hold(bench, "b", tenant="globex").admitted
    assert hold(bench, "c", replace(AGAIN, key=CLIENT.key)).admitted


def test_a_refused_attempt_leaves_no_trace(bench: Bench) -> None:
    """Neither the first one nor a retry: what is admitted later is judged as if it had not been there."""
    only_two = replace(CLIENT, attempts_max=2)
    assert not hold(bench, "a", only_two, line(2000)).admitted
    hold(bench, "b", only_two)
    settle(bench, "b", Usage(5))
    for hold_id in ("c", "d"):
        refused = hold(bench, hold_id, only_two, line(2000))
        assert (refused.admitted, refused.earlier) == (False, None)
        assert refused.states[0].short
    assert hold(bench, "e", only_two).admitted
    assert settle(bench, "e", Usage(9)).reversed_id == "b"
    assert counts(bench) == (9, 0)


def test_after_the_last_attempt_a_new_logical_request_begins(bench: Bench) -> None:
    """Charged on its own; the one before it stays as it is."""
    attempt = replace(CLIENT, attempts_max=2)
    reversed_ids = []
    for hold_id in "abcd":
        assert hold(bench, hold_id, attempt).admitted
        reversed_ids.append(settle(bench, hold_id, Usage(5)).reversed_id)
    assert reversed_ids == [None, "a", None, "c"]
    assert counts(bench) == (10, 0)


def test_two_equal_requests_are_two(bench: Bench) -> None:
    """Under a derived key without a retry, also while the first one runs."""
    assert hold(bench, "a", FIRST).admitted
    assert hold(bench, "b", FIRST).admitted
    settle(bench, "a", Usage(5), answer=b"x")
    assert hold(bench, "c", FIRST).admitted
    settle(bench, "b", Usage(5))
    settle(bench, "c", Usage(5))
    assert counts(bench) == (15, 0)
    assert reversals(bench) == []


def test_a_retry_under_a_derived_key_is_for_one_that_broke_off_then_for_one_that_runs_then_for_a_finished_one(
    bench: Bench,
) -> None:
    """The newest of each."""
    for hold_id in "abcdef":
        hold(bench, hold_id, FIRST)
    settle(bench, "a", Usage(1))
    settle(bench, "b", Usage(2))
    settle(bench, "c", Usage(3), answer=b"of c")
    settle(bench, "d", Usage(4), answer=b"of d")
    assert hold(bench, "g", AGAIN).admitted
    assert settle(bench, "g", Usage(20), answer=b"of g").reversed_id == "b"
    assert hold(bench, "h", AGAIN).admitted
    assert settle(bench, "h", Usage(10), answer=b"of h").reversed_id == "a"
    assert hold(bench, "i", AGAIN).earlier == Earlier(Standing.RUNNING, "f")
    settle(bench, "f", Usage(1), answer=b"of f")
    assert hold(bench, "i", AGAIN).earlier == Earlier(Standing.RUNNING, "e")
    settle(bench, "e", Usage(1), answer=b"of e")
    assert hold(bench, "i", AGAIN).earlier == Earlier(Standing.FINISHED, "f", b"of f")


def test_a_retry_that_nothing_is_known_of_is_a_new_logical_request(bench: Bench) -> None:
    assert hold(bench, "a", AGAIN).admitted
    assert hold(bench, "b", AGAIN).earlier == Earlier(Standing.RUNNING, "a")


def test_exhausted_logical_requests_of_a_derived_key_are_passed_over(bench: Bench) -> None:
    once = replace(AGAIN, attempts_max=1)
    hold(bench, "a", once)
    settle(bench, "a", Usage(5))
    assert hold(bench, "b", once).admitted
    assert hold(bench, "c", once).earlier == Earlier(Standing.RUNNING, "b")
    assert settle(bench, "b", Usage(5)).reversed_id is None
    assert counts(bench) == (10, 0)


def test_a_derived_key_remembers_so_many_logical_requests(bench: Bench) -> None:
    """A dropped one still settles like any other."""
    roomy = line(1, limit=10_000)
    for number in range(layout.REMEMBERED + 1):
        assert hold(bench, f"a{number}", FIRST, roomy).admitted
    assert hold(bench, "b", AGAIN, roomy).earlier == Earlier(Standing.RUNNING, f"a{layout.REMEMBERED}")
    settle(bench, "a0", Usage(1))  # was the oldest
    assert hold(bench, "b", AGAIN, roomy).earlier is not None
    settle(bench, "a1", Usage(1))
    assert hold(bench, "b", AGAIN, roomy).admitted
    assert settle(bench, "b", Usage(1)).reversed_id == "a1"
    assert counts(bench, limit=10_000) == (2, layout.REMEMBERED - 1)


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
