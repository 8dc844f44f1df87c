"""Counters keep every unit: nothing leaves early, nothing is lost to rounding."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kong_plugins.domain.budgets import TOKENS_MAX, UNITS_MAX, Budget, Weights
from kong_plugins.domain.counters import FAR_US, BucketCounter, RollingCounter
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit

START_US = 1_795_000_000_000_000


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 50)), min_size=1, max_size=60),
)
def test_no_span_of_a_rolling_windows_length_exceeds_the_limit(limit: int, wishes: list[tuple[int, int]]) -> None:
    """Whatever is admitted one after the other, wherever one puts the window."""
    window = RollingWindow(2)
    counter = RollingCounter(window)
    now_us, admitted = START_US, []
    for pause_us, amount in wishes:
        now_us += pause_us
        counter.advance(now_us, limit)
        if counter.committed + amount <= limit:
            counter.post(amount, now_us, now_us)
            admitted.append((now_us, amount))
    for end_us, _ in admitted:
        assert sum(amount for when, amount in admitted if end_us - 2_000_000 < when <= end_us) <= limit


@given(st.integers(0, 10_000_000))
def test_a_rolling_amount_leaves_at_most_a_slice_late(offset_us: int) -> None:
    window = RollingWindow(2)
    counter = RollingCounter(window)
    used_us = START_US + offset_us
    counter.post(5, used_us, used_us)
    counter.advance(used_us + 2_000_000, 10)
    assert counter.committed == 5
    counter.advance(used_us + 2_000_000 + 2 * window.slice_us, 10)
    assert counter.committed == 0


@given(
    st.integers(1, 10**12),
    st.integers(1, 86_400),
    st.lists(st.integers(0, 5_000_000), min_size=1, max_size=50),
)
def test_a_bucket_refills_the_same_however_often_one_looks(limit: int, refill_s: int, pauses: list[int]) -> None:
    """The part of a unit is carried, so a thousand glances cost nothing."""
    window = TokenBucket(refill_s)
    often, once = (BucketCounter(window, START_US, committed=limit) for _ in range(2))
    now_us = START_US
    for pause_us in pauses:
        now_us += pause_us
        often.advance(now_us, limit)
    once.advance(now_us, limit)
    assert (often.committed, often.fraction) == (once.committed, once.fraction)


@given(st.integers(1, 10**9), st.integers(1, 86_400), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_bucket_says_the_first_moment_an_amount_has_flowed_back(
    limit: int, refill_s: int, committed: int, lacking: int
) -> None:
    window = TokenBucket(refill_s)
    lacking = 1 + lacking % committed
    when_us = BucketCounter(window, START_US, committed=committed).reset_us(START_US, limit, lacking)
    assume(when_us - START_US < FAR_US)  # beyond that it says "far", not when
    early, then = (BucketCounter(window, START_US, committed=committed) for _ in range(2))
    early.advance(when_us - 1, limit)
    then.advance(when_us, limit)
    assert then.committed <= committed - lacking < early.committed


def test_a_full_bucket_does_not_save_up() -> None:
    bucket = BucketCounter(TokenBucket(1), START_US, committed=10)
    bucket.advance(START_US + 60_000_000, 100)
    assert (bucket.committed, bucket.fraction) == (0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Weights(-1, 0, 0),
        lambda: Weights(1, 1, 1, denominator=0),
        lambda: Weights(UNITS_MAX // TOKENS_MAX + 1, 0, 0),
        lambda: Weights(1, 1, 1, request=UNITS_MAX + 1),
        lambda: Weights(UNITS_MAX + 1, 0, 0, denominator=2**40),
        lambda: Budget("daily", UNITS_MAX + 1, FixedWindow(Unit.DAY)),
        lambda: Budget("daily", -1, FixedWindow(Unit.DAY)),
    ],
)
def test_units_that_doubles_cannot_count_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"units|negative"):
        make()


def test_the_largest_weights_stay_within_what_doubles_count() -> None:
    weights = Weights(UNITS_MAX // TOKENS_MAX, 0, 0, request=UNITS_MAX)
    assert weights.amount(Usage(TOKENS_MAX)) <= 2 * UNITS_MAX < 2**53
