"""The judgement of a long run goes red for what grows, and not for what is only noisy."""

from __future__ import annotations

import random

import pytest

from tests.longrun.flatness import Tolerance, judge, slope
from tests.longrun.measures import PERCENTILES, TOLERANCES, verdicts

MEMORY = Tolerance(0.05, 3.0)


def noisy(seed: int, level: float, noise: float, per_minute: float = 0.0, minutes: int = 80) -> list[float]:
    """A level with noise, a spike each ten minutes, and a leak where ``per_minute`` says so."""
    chance = random.Random(seed)
    return [
        level + per_minute * minute + chance.gauss(0, noise) + (10 * noise if minute % 10 == 7 else 0)
        for minute in range(minutes)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_only_noisy_is_flat(seed: int) -> None:
    assert judge("memory", noisy(seed, 100.0, 1.0), 20, MEMORY).flat


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_a_hundred_bytes_a_request_is_not(seed: int) -> None:
    """At 20 requests a second that is 0.12 MB a minute, under noise eight times as large."""
    verdict = judge("memory", noisy(seed, 40.0, 1.0, per_minute=0.12), 20, MEMORY)
    assert not verdict.flat
    assert pytest.approx(verdict.per_hour, rel=0.5) == 60 * 0.12


def test_a_warm_up_is_not_judged_and_neither_is_a_fall() -> None:
    assert judge("keys", [*range(0, 2000, 100), *[2000.0] * 60], 20, Tolerance(0.1, 100)).flat
    assert judge("keys", [2000.0 - minute for minute in range(80)], 20, Tolerance(0.0, 0)).flat


def test_single_spikes_do_not_move_the_slope() -> None:
    assert slope([5.0, 5.0, 500.0, 5.0, 5.0, 5.0]) == 0


def test_three_minutes_after_the_warm_up_are_needed() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge("memory", [1.0] * 5, 3, MEMORY)


def _minute(**changed: float) -> dict[str, float]:
    return dict.fromkeys(TOLERANCES, 100.0) | {f"bare_trip_ms p{share}": 1.0 for share in PERCENTILES} | changed


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_measure_can_be_found_grown(name: str) -> None:
    """Doubled and more in the last third: no measure has a tolerance that nothing exceeds."""
    rows = [_minute(**({name: 350.0} if minute >= 20 else {})) for minute in range(30)]
    grown = [verdict.name.partition(" (")[0] for verdict in verdicts(rows, 0) if not verdict.flat]
    assert grown == [name]


@pytest.mark.parametrize(("at_once", "flat"), [(20.0, False), (120.0, True)])
def test_memory_may_grow_with_what_was_under_way_at_once(at_once: float, flat: bool) -> None:
    """A burst's memory stays with the allocator; without a burst it is a leak."""
    grown = {"gateway pss_mb": 108.0, "at_once": at_once}
    rows = [_minute(**({"at_once": 20.0} if minute < 20 else grown)) for minute in range(30)]
    assert all(verdict.flat for verdict in verdicts(rows, 0)) == flat


def test_latency_may_grow_as_the_bare_round_trip_does() -> None:
    """A neighbour that takes the machine makes both slower; a plugin that gets slower makes one."""
    name = "added_first_ms p50"
    busy = [_minute(**({name: 300.0, "bare_trip_ms p50": 3.0} if minute >= 20 else {})) for minute in range(30)]
    assert all(verdict.flat for verdict in verdicts(busy, 0))
