"""What every ledger promises of attempts: a logical request is charged once, as the dearest of its attempts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kong_plugins.adapters.ledger import layout
from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier, Standing
from kong_plugins.domain.budgets import Weights
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import HoldOutcome, Outcome, SettleOutcome, SettleStatus
from kong_plugins.domain.usage import NO_USAGE, Usage
from kong_plugins.domain.windows import TokenBucket
from tests.contract.attempt_making import (
    AGAIN,
    CLIENT,
    FIRST,
    counts,
    either,
    events,
    hold,
    kinds,
    line,
    reversals,
    settle,
)
from tests.contract.conftest import ANSWERS_BYTES, Bench


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
