"""How long a refused request is told to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.concurrency import UNMEASURED_US, Pace, Slots, SlotState, slot_states

S = 1_000_000
PATIENCE_US = 60 * S
FULL = SlotState("requests", 4, 4, short=True)


def measured(took_us: int = 8 * S) -> Pace:
    pace = Pace()
    pace.ended("acme", "requests", took_us)
    return pace


def test_with_four_places_one_is_free_every_quarter_of_what_a_request_takes() -> None:
    """8 s each, four at a time: 2 s; and the next one refused has the turn after that."""
    pace = measured()
    assert [pace.turn_us("acme", FULL, 0, PATIENCE_US) for _ in range(3)] == [2 * S, 4 * S, 6 * S]


def test_turns_pass_as_time_does() -> None:
    """Whoever is refused two seconds later is behind one turn less; after a long pause behind none."""
    pace = measured()
    for _ in range(3):
        pace.turn_us("acme", FULL, 0, PATIENCE_US)
    assert pace.turn_us("acme", FULL, 2 * S, PATIENCE_US) == 6 * S
    assert pace.turn_us("acme", FULL, 100 * S, PATIENCE_US) == 2 * S


def test_the_mean_follows_what_requests_take_now() -> None:
    """Ten short ones after a long one: nearer to the short."""
    pace = measured(80 * S)
    for _ in range(10):
        pace.ended("acme", "requests", 4 * S)
    assert 1 * S < pace.turn_us("acme", FULL, 0, PATIENCE_US) < 10 * S


def test_nothing_measured_is_a_second_and_no_other_tenants_pace() -> None:
    pace = measured()
    assert pace.turn_us("globex", FULL, 0, PATIENCE_US) == UNMEASURED_US
    assert pace.turn_us("acme", SlotState("other", 4, 4), 0, PATIENCE_US) == UNMEASURED_US


def test_what_is_open_beyond_a_lowered_limit_has_to_end_first() -> None:
    """Ten run, four may: the eleventh waits for seven ends, of which one comes every 2 s."""
    assert measured().turn_us("acme", SlotState("requests", 4, 10, short=True), 0, PATIENCE_US) == 14 * S


@given(took=st.integers(-5, 10**12), taken=st.integers(1, 1000), steps=st.lists(st.integers(0, 10**9), max_size=20))
def test_a_wait_is_positive_and_within_the_clients_patience(took: int, taken: int, steps: list[int]) -> None:
    """Whatever was measured: also a clock that ran backwards, also a client that never stops asking."""
    pace = measured(took)
    now_us = 0
    for step in steps:
        now_us += step
        assert 1 <= pace.turn_us("acme", SlotState("requests", 1, taken), now_us, PATIENCE_US) <= PATIENCE_US


def test_a_limit_of_nothing_is_no_limit_to_configure() -> None:
    for limit, ttl_us in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="slot"):
            Slots("requests", limit, ttl_us)


def test_states_tell_what_is_left() -> None:
    (state,) = slot_states([Slots("requests", 4, 1)], [2], admitted=True)
    assert (state.taken, state.remaining, state.short) == (3, 1, False)
