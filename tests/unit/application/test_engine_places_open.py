"""Places of this process's requests: vouched for while they run, given back in one go, never beyond their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kong_plugins.adapters.ledger import MemoryPlaces
from kong_plugins.application.engine_places import SCARCE_S, OpenPlaces
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.shares import EnginePace, EngineShare, PlaceState

LEASE_US = 30_000_000
TEN = EngineShare("r1", 10)


class Queue:
    """Runs what it was given when it is told to; takes nothing while ``full``."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []
        self.full = False

    def submit(self, task: Callable[[], None]) -> bool:
        if not self.full:
            self.tasks.append(task)
        return not self.full

    def pause(self, seconds: float) -> bool:
        raise NotImplementedError(seconds)

    def run(self) -> int:
        count = len(self.tasks)
        while self.tasks:
            self.tasks.pop(0)()
        return count


class Store(MemoryPlaces):
    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock, lease_us=LEASE_US)
        self.cut = self.lost = False
        self.left: list[int] = []

    def enter(self, share: EngineShare, tenant: str, hold_id: str) -> PlaceState:
        self._line(self.cut)
        state = super().enter(share, tenant, hold_id)
        self._line(self.lost)
        return state

    def leave(self, key: str, requests: Sequence[tuple[str, str]]) -> int:
        self._line(self.cut)
        self.left.append(super().leave(key, requests))
        return self.left[-1]

    def renew(self, key: str, requests: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        self._line(self.cut)
        return super().renew(key, requests)

    def _line(self, broken: bool) -> None:
        if broken:
            raise LedgerUnavailable("the line is cut")


class Process:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.store = Store(lambda: round(self.now_s * 1e6))
        self.queue = Queue()
        self.pace = EnginePace()
        self.open = OpenPlaces(self.store, self.queue, self.pace, lambda: self.now_s)

    def enter(self, hold_id: str, most_s: float = 900) -> PlaceState | None:
        return self.open.enter(TEN, "a", hold_id, round(most_s * 1e6))

    def taken(self) -> int:
        return self.store.enter(TEN, "who looks", "0").taken - 1


def test_places_are_vouched_for_until_they_are_given_back() -> None:
    """Ten minutes of a stream; then its place is free at once. Many that end together are one call."""
    process = Process()
    for hold_id in "123":
        process.enter(hold_id)
    for _ in range(60):
        process.now_s += 10
        process.open.renew()
    assert process.taken() == 3
    for hold_id in "123":
        process.open.leave("r1", "a", hold_id)
    assert process.queue.run() == 1
    assert process.store.left == [3]
    process.open.leave("r1", "a", "3")
    process.queue.run()
    assert process.taken() == 0


def test_what_a_place_was_taken_for_tells_others_how_long_to_wait() -> None:
    """Four seconds on ten places; not what was given back before the engine had it, nor what others let in."""
    process = Process()
    process.enter("1")
    process.now_s += 4
    process.open.ended("r1", "a", "1")
    process.open.leave("r1", "a", "2")
    process.open.ended("r1", "a", "of another process")
    process.queue.run()
    assert process.store.left == [1]
    full = PlaceState(False, 10, 10, 0, 0)
    assert process.pace.turn_us("r1", "b", full, 60_000_000) == 400_000


def test_nobody_vouches_for_a_request_beyond_its_time() -> None:
    """Kong was killed: no log phase tells of its end."""
    process = Process()
    process.enter("1", most_s=20)
    for _ in range(6):
        process.now_s += 10
        process.open.renew()
    assert process.taken() == 0


def test_a_killed_process_vouches_for_nothing() -> None:
    process = Process()
    process.enter("1")
    process.now_s += 29
    assert process.taken() == 1
    process.now_s += 1
    assert process.taken() == 0


def test_a_place_that_may_have_been_taken_is_given_back() -> None:
    """The answer was lost: the request runs without one, and none is left taken."""
    process = Process()
    process.store.lost = True
    assert process.enter("1") is None
    process.store.lost = False
    process.queue.run()
    assert process.taken() == 0


def test_what_cannot_be_told_ends_with_its_lease() -> None:
    """A queue that takes no more, a store that is away: neither stops what comes after."""
    process = Process()
    process.enter("1")
    process.enter("2")
    process.queue.full = True
    process.open.leave("r1", "a", "1")
    process.queue.full = False
    process.open.leave("r1", "a", "2")
    process.store.cut = True
    process.queue.run()
    process.open.renew()
    process.store.cut = False
    assert process.taken() == 2
    process.now_s += 31
    process.open.renew()
    assert process.taken() == 0
    process.enter("3")
    process.open.leave("r1", "a", "3")
    process.queue.run()
    assert process.taken() == 0


def test_an_engine_counts_as_scarce_for_a_moment_after_it_was_nearly_full() -> None:
    process = Process()
    for hold_id in "1234567":
        process.enter(hold_id)
    assert not process.open.scarce("r1")
    process.enter("8")
    assert process.open.scarce("r1")
    assert not process.open.scarce("other")
    process.now_s += SCARCE_S
    assert not process.open.scarce("r1")
