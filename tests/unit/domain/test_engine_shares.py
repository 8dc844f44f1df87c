"""Who has an engine's next place, and how long the others wait."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.shares import EnginePace, EngineShare, PlaceState, may_enter

S = 1_000_000
PATIENCE_US = 60 * S


@given(st.integers(1, 1_000), st.integers(0, 1_000), st.integers(0, 1_000), st.floats(0, 1_000), st.integers(1, 9))
def test_no_more_than_there_are_and_a_newcomer_whenever_there_is_one(
    places: int, taken: int, mine: int, most: float, weight: int
) -> None:
    share = EngineShare("r1", places, weight)
    admitted = may_enter(share, taken, mine, most)
    assert not (admitted and taken >= places)
    assert admitted or taken >= places or mine > 0
    assert admitted or taken >= places - share.kept


@pytest.mark.parametrize(("places", "kept"), [(1, 1), (5, 1), (10, 1), (11, 2), (200, 20)])
def test_a_tenth_is_kept_and_one_at_least(places: int, kept: int) -> None:
    assert EngineShare("r1", places).kept == kept


@pytest.mark.parametrize(("places", "weight"), [(0, 1), (100_001, 1), (1, 0), (1, 1_001)])
def test_a_share_of_nothing_is_none(places: int, weight: int) -> None:
    with pytest.raises(ValueError, match="'r1'"):
        EngineShare("r1", places, weight)


def refused(taken: int = 10, mine: int = 2, now_us: int = 0) -> PlaceState:
    return PlaceState(False, 10, taken, mine, now_us)


def test_a_full_engine_frees_its_places_one_after_another() -> None:
    """8 s a request on ten places: 0.8 s; the tenant's next one behind it, another tenant's at the same moment."""
    pace = EnginePace()
    pace.ended("r1", 8 * S)
    assert [pace.turn_us("r1", "a", refused(), PATIENCE_US) for _ in range(2)] == [800_000, 1_600_000]
    assert pace.turn_us("r1", "b", refused(), PATIENCE_US) == 800_000


def test_before_a_request_has_ended_it_is_taken_to_need_a_second() -> None:
    """Each refused one has a turn of its own all the same: a burst does not come back as one."""
    pace = EnginePace()
    assert [pace.turn_us("r1", "a", refused(), PATIENCE_US) for _ in range(2)] == [100_000, 200_000]
    pace.ended("r1", 2 * S)
    assert pace.turn_us("r1", "b", refused(), PATIENCE_US) == 200_000


def test_a_tenant_beyond_its_share_waits_for_its_own() -> None:
    """Two of its requests run, 8 s each: one ends in 4 s. Time passes, turns with it, and never beyond its patience."""
    pace = EnginePace()
    pace.ended("r1", 8 * S)
    assert [pace.turn_us("r1", "a", refused(taken=9), PATIENCE_US) for _ in range(3)] == [4 * S, 8 * S, 12 * S]
    assert pace.turn_us("r1", "a", refused(taken=9, now_us=10 * S), PATIENCE_US) == 6 * S
    assert pace.turn_us("r1", "a", refused(taken=9), 5 * S) == 5 * S


@dataclass
class World:
    """Closed-loop clients that come back when they were told to; requests take a random while. Seconds."""

    places: int
    tenants: dict[str, tuple[int, int]]  # clients and weight
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self, until_s: float, mean_s: float = 1.0) -> None:
        self.held = dict.fromkeys(self.tenants, 0)
        self.done = dict.fromkeys(self.tenants, 0)
        self.refused = dict.fromkeys(self.tenants, 0)
        self.worked_s = last_s = 0.0
        pace, number = EnginePace(), 0
        due = [
            (self.dice.random() / 100, n, "ask", tenant)
            for n, tenant in enumerate(name for name, (clients, _) in self.tenants.items() for _ in range(clients))
        ]
        heapq.heapify(due)
        while due and due[0][0] < until_s:
            now_s, _, what, tenant = heapq.heappop(due)
            self.worked_s += sum(self.held.values()) * (now_s - last_s)
            last_s, number = now_s, number - 1
            if what == "end":
                self.held[tenant] -= 1
                self.done[tenant] += 1
                heapq.heappush(due, (now_s + 0.005, number, "ask", tenant))
                continue
            share = EngineShare("r1", self.places, self.tenants[tenant][1])
            taken, mine = sum(self.held.values()), self.held[tenant]
            others = (self.held[each] / weight for each, (_, weight) in self.tenants.items() if each != tenant)
            if may_enter(share, taken, mine, max(others, default=0.0)):
                self.held[tenant] += 1
                took_s = self.dice.expovariate(1 / mean_s)
                pace.ended("r1", round(took_s * S))
                heapq.heappush(due, (now_s + took_s, number, "end", tenant))
            else:
                self.refused[tenant] += 1
                state = PlaceState(False, self.places, taken, mine, round(now_s * S))
                heapq.heappush(due, (now_s + pace.turn_us("r1", tenant, state, PATIENCE_US) / S, number, "ask", tenant))
        self.busy = self.worked_s / last_s / self.places

    def jain(self) -> float:
        """Of answered requests by weight: 1 when all tenants have their part, 1/n when one has all."""
        parts = [self.done[tenant] / weight for tenant, (_, weight) in self.tenants.items()]
        return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


@pytest.mark.parametrize(
    ("places", "tenants"),
    [
        (20, {"a": (100, 1), "b": (100, 1), "c": (12, 1), "d": (9, 1)}),
        (20, {"a": (100, 3), "b": (100, 1)}),
        (8, {f"t{n}": (10 * n + 2, 1) for n in range(5)}),
        (10, {f"t{n}": (n + 1, 1) for n in range(30)}),
    ],
)
def test_tenants_that_want_more_than_there_is_get_alike(places: int, tenants: dict[str, tuple[int, int]]) -> None:
    """However many clients each has, by its weight, also where there are more tenants than places."""
    world = World(places, tenants)
    world.run(300)
    assert world.jain() > 0.95
    assert world.busy > 0.98


def test_who_wants_less_than_its_share_has_all_it_wants() -> None:
    """Beside a hundred clients of another: never refused; and the rest is the other's, but for the tenth."""
    world = World(20, {"flood": (100, 1), "polite": (2, 1)})
    world.run(300)
    assert world.refused["polite"] == 0
    assert world.busy > 0.88
    assert world.refused["flood"] < 2 * world.done["flood"]
