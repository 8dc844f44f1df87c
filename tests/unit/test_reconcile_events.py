"""What an event can explain of the engine's counters, and how much at most."""

from __future__ import annotations

import pytest

from kong_plugins.application.reconcile_events import NOTHING, BookedEvent, Explanation, Kind, Pace, Range, explain

PACE = Pace(tokens_s=100, notice_us=100_000)  # ten tokens until an engine notices
SECOND = 1_000_000


def event(**fields: object) -> BookedEvent:
    known = {"evidence": "exact", "outcome": "completed", "status": 200, "prompt": 40, "completion": 9, **fields}
    return BookedEvent("id", "request", "m", 5 * SECOND, 7 * SECOND, **known)  # type: ignore[arg-type]


def only(one: BookedEvent, *, crossing: bool = False) -> Explanation:
    (found,) = explain(one, PACE, crossing=crossing)
    return found


def test_the_engines_own_final_figures_explain_nothing() -> None:
    """Whatever became of the answer afterwards, and also of a refused request."""
    for fields in ({}, {"outcome": "aborted"}, {"status": 502, "outcome": "failed"}):
        assert explain(event(**fields), PACE, crossing=False) == ()
    denied = event(outcome="denied", status=429, prompt=0, completion=0, prompt_bound=90, completion_bound=90)
    assert explain(denied, PACE, crossing=False) == ()


@pytest.mark.parametrize(("bound", "most"), [(500, 10), (12, 3), (9, 0)])
def test_a_client_that_left_explains_what_fits_into_the_notice_and_its_hold(bound: int, most: int) -> None:
    """Never a prompt token, never more than the request was allowed."""
    left = event(outcome="aborted", evidence="continuous", completion_bound=bound)
    if most:
        assert only(left) == Explanation(Kind.ABORTED, "id", NOTHING, Range(0, most))
    else:
        assert explain(left, PACE, crossing=False) == ()


def test_choices_explain_their_prompts_to_the_token() -> None:
    """A whole answer: n - 1 times. One that broke off: as many as were begun."""
    assert only(event(choices=3)) == Explanation(Kind.CHOICES, "id", Range(80, 80))
    left = event(choices=3, outcome="aborted", evidence="continuous", completion_bound=9)
    assert only(left) == Explanation(Kind.CHOICES, "id", Range(0, 80))


def test_a_gateway_that_gave_up_explains_what_fits_into_its_time() -> None:
    """Two seconds at a hundred tokens each, and the notice; only what a server error ended."""
    gone = event(outcome="failed", status=504, prompt=0, completion=0, prompt_bound=50, completion_bound=1000)
    assert only(gone) == Explanation(Kind.FAILED, "id", Range(0, 50), Range(0, 210))
    refused = event(outcome="failed", status=400, prompt=0, completion=0, prompt_bound=50, completion_bound=1000)
    assert explain(refused, PACE, crossing=False) == ()


def test_an_expired_hold_explains_what_it_held() -> None:
    """Nothing was charged; everything may have run."""
    lost = event(
        outcome="expired", evidence="held", prompt=0, completion=0, prompt_bound=50, completion_bound=64, choices=2
    )
    assert only(lost) == Explanation(Kind.EXPIRED, "id", Range(0, 100), Range(0, 64))


def test_a_charge_without_usage_explains_both_ways() -> None:
    """Charged at its bound, it may have used none of it; charged nothing, what fits into its time."""
    at_bound = event(outcome="aborted", evidence="held", prompt=50, completion=64, prompt_bound=50, completion_bound=64)
    assert only(at_bound) == Explanation(Kind.HELD, "id", Range(-50, 0), Range(-64, 0))
    free = event(outcome="aborted", evidence="held", prompt=0, completion=0, prompt_bound=50, completion_bound=9999)
    assert only(free) == Explanation(Kind.HELD, "id", Range(0, 50), Range(0, 210))


def test_our_own_count_is_near_the_engines() -> None:
    """A twentieth and a few tokens; what nobody saw, by its time."""
    whole = only(event(evidence="tokenized", prompt=400, completion=200))
    assert whole == Explanation(Kind.COUNTED, "id", Range(-36, 36), Range(-26, 26))
    unseen = only(event(evidence="tokenized", outcome="aborted", completion=0, prompt_bound=90, completion_bound=500))
    assert (unseen.prompt.low, unseen.completion) == (-40, Range(0, 210))


def test_a_reversal_explains_exactly_what_it_took_back() -> None:
    """Once it is in the books; before that the charge still stands there."""
    taken = BookedEvent("reversal:id", "reversal", "m", 0, 1, prompt=40, completion=9)
    assert only(taken) == Explanation(Kind.REVERSED, "reversal:id", Range(40, 40), Range(9, 9))
    late = BookedEvent("reversal:id", "reversal", "m", 0, 1, prompt=40, completion=9, where="outbox")
    assert explain(late, PACE, crossing=False) == ()


def test_an_event_on_its_way_explains_itself() -> None:
    """By where it is; it bills nothing yet."""
    waiting = event(where="outbox")
    assert only(waiting) == Explanation(Kind.UNDELIVERED, "id", Range(40, 40), Range(9, 9))
    assert not waiting.billed


def test_an_open_hold_explains_what_may_have_run_so_far() -> None:
    """It has no usage and no end."""
    running = event(where="hold", evidence="held", prompt=0, completion=0, prompt_bound=50, completion_bound=1000)
    assert only(running, crossing=True) == Explanation(Kind.OPEN, "id", Range(0, 50), Range(0, 210))


def test_what_runs_while_counters_are_read_may_be_counted_or_not() -> None:
    """None of it, or all: no more than it has."""
    assert only(event(), crossing=True) == Explanation(Kind.EDGE, "id", Range(-40, 0), Range(-9, 0))
    choices, edge = explain(event(choices=2), PACE, crossing=True)
    assert (choices.prompt, edge.prompt) == (Range(0, 40), Range(-40, 0))
    counted, edge, late = explain(event(evidence="tokenized", where="outbox"), PACE, crossing=True)
    assert edge.prompt.low + late.prompt.low + counted.prompt.low <= 0


def test_beyond_a_range_is_told_by_how_much() -> None:
    """Zero within it, with a sign outside."""
    assert [Range(-2, 3).beyond(value) for value in (-5, -2, 0, 3, 7)] == [-3, 0, 0, 0, 4]
