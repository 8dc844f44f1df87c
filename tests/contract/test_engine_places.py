"""Engines' places, of all tenants together: in memory and in a real Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kong_plugins.adapters.ledger import MemoryPlaces, RedisPlaces, connect_places
from kong_plugins.domain.shares import EngineShare
from tests.contract.conftest import HandClock, ServerClock

LEASE_US = 150_000
TEN = EngineShare("r1", 10)


@dataclass
class Bench:
    places: MemoryPlaces | RedisPlaces
    wait_until: Callable[[int], None]


@pytest.fixture(params=["memory", "valkey"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        hand = HandClock()
        yield Bench(MemoryPlaces(hand, lease_us=LEASE_US), hand.wait_until)
        return
    clock = ServerClock(request.getfixturevalue("client"))
    places = connect_places(request.getfixturevalue("valkey").url, timeout_s=5, lease_us=LEASE_US)
    yield Bench(places, clock.wait_until)
    places.close()


def fill(bench: Bench, tenant: str, count: int, share: EngineShare = TEN) -> list[bool]:
    """So many requests ask. Whether each was let in."""
    return [bench.places.enter(share, tenant, f"{n}").admitted for n in range(count)]


def test_a_tenth_is_kept_from_whoever_holds_the_most(bench: Bench) -> None:
    """Alone on the engine, a tenant has nine of ten; the last one is another's, who finds it at once."""
    assert fill(bench, "flood", 12) == [True] * 9 + [False] * 3
    refused = bench.places.enter(TEN, "flood", "again")
    assert (refused.admitted, refused.full, refused.taken, refused.mine) == (False, False, 9, 9)
    polite = bench.places.enter(TEN, "polite", "first")
    assert (polite.admitted, polite.taken, polite.mine) == (True, 10, 1)
    full = bench.places.enter(TEN, "third", "first")
    assert (full.admitted, full.full, full.taken, full.mine) == (False, True, 10, 0)


def test_places_that_come_free_go_to_who_holds_less_until_all_hold_alike(bench: Bench) -> None:
    fill(bench, "flood", 9)
    for n in range(8):
        bench.places.enter(TEN, "late", f"{n}")
        bench.places.leave("r1", [("flood", f"{n}")])
        bench.places.enter(TEN, "flood", f"more {n}")
    state = bench.places.enter(TEN, "late", "0")
    assert (state.taken, state.mine) == (10, 5)


def test_of_tenants_that_hold_alike_none_has_what_is_kept(bench: Bench) -> None:
    """Four each of nine; the last one waits for who holds less."""
    nine = replace(TEN, places=9)
    assert fill(bench, "a", 4, nine) == fill(bench, "b", 4, nine) == [True] * 4
    assert not bench.places.enter(nine, "a", "more").admitted
    assert not bench.places.enter(nine, "b", "more").admitted
    assert bench.places.enter(nine, "c", "0").admitted


def test_a_heavier_tenant_holds_as_much_more(bench: Bench) -> None:
    """Weight three against one: the last tenth is theirs as long as they hold less than three times as much."""
    heavy = replace(TEN, weight=3)
    fill(bench, "heavy", 6, heavy)
    fill(bench, "light", 3)
    assert not bench.places.enter(TEN, "light", "more").admitted
    assert bench.places.enter(heavy, "heavy", "more").admitted


def test_whoever_has_a_place_has_it_once(bench: Bench) -> None:
    """Asked again, as after a lost answer, it is the same place; given back twice it is one place that comes free."""
    for _ in range(3):
        assert bench.places.enter(TEN, "a", "one").taken == 1
    assert bench.places.leave("r1", [("a", "one"), ("a", "one"), ("b", "never")]) == 1
    assert bench.places.leave("r1", [("a", "one")]) == 0
    assert bench.places.enter(TEN, "a", "two").taken == 1


def test_another_engines_places_are_others(bench: Bench) -> None:
    """Also of an engine whose name holds what a hash tag ends with, and of a tenant with a slash in its name."""
    fill(bench, "a", 9)
    assert bench.places.enter(replace(TEN, key="r1}:x"), "a", "0").taken == 1
    assert bench.places.enter(TEN, "a/0", "0").mine == 1


def test_an_edited_number_of_places_applies_to_what_is_open(bench: Bench) -> None:
    fill(bench, "a", 9)
    assert not bench.places.enter(replace(TEN, places=5), "b", "0").admitted
    assert bench.places.enter(replace(TEN, places=20), "a", "more").mine == 10


def test_a_place_that_nobody_vouches_for_is_free_again(bench: Bench) -> None:
    """A killed gateway's. One that is renewed stays; one that is gone is told, and renewing does not bring it back."""
    fill(bench, "killed", 5)
    now_us = bench.places.enter(TEN, "alive", "0").now_us
    bench.wait_until(now_us + LEASE_US // 2)
    assert bench.places.renew("r1", [("alive", "0")]) == ()
    bench.wait_until(now_us + LEASE_US)
    assert bench.places.enter(TEN, "alive", "1").taken == 2
    assert bench.places.renew("r1", [("killed", "0"), ("alive", "0")]) == (("killed", "0"),)
    assert bench.places.enter(TEN, "killed", "new").mine == 1


def test_nothing_is_left_of_an_engine_that_nobody_uses(client: redis.Redis, valkey: object) -> None:
    """Neither when all have left nor, a lease later, when all were killed."""
    places = connect_places(valkey.url, timeout_s=5, lease_us=LEASE_US)  # type: ignore[attr-defined]
    places.enter(TEN, "a", "0")
    assert places.leave("r1", [("a", "0")]) == 1
    assert client.keys("*") == []
    until_us = places.enter(TEN, "a", "0").now_us + LEASE_US
    assert len(client.keys("*")) == 3
    ServerClock(client).wait_until(until_us + 2_000)
    assert client.keys("*") == []
    places.close()


requests = st.tuples(st.sampled_from(["a", "b", "c/", "é"]), st.sampled_from("01234567"))
steps = st.one_of(
    st.tuples(st.just("enter"), requests, st.integers(1, 9), st.integers(1, 4)),
    st.tuples(st.just("leave"), st.lists(requests, min_size=1, max_size=3)),
    st.tuples(st.just("renew"), st.lists(requests, min_size=1, max_size=3, unique=True)),
)


@given(st.lists(steps, max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_the_server_decides_as_the_model_does(
    client: redis.Redis, valkey: object, history: list[tuple[object, ...]]
) -> None:
    client.flushall()
    real = connect_places(valkey.url, timeout_s=5)  # type: ignore[attr-defined]
    model = MemoryPlaces(lambda: real.now_us)
    for operation, *arguments in history:
        if operation == "enter":
            (tenant, hold_id), places, weight = arguments
            share = EngineShare("r1", places, weight)
            assert real.enter(share, tenant, hold_id) == model.enter(share, tenant, hold_id)
        else:
            assert getattr(real, str(operation))("r1", *arguments) == getattr(model, str(operation))("r1", *arguments)
    real.close()
