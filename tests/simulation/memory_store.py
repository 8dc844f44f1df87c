"""The store as the in-memory model: the ledger, and the outbox with groups, trimming and dead letters, which together
survive a restart, and go back to what a replica had when they fail over."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.ledger import MemoryLedger, layout
from kong_plugins.adapters.outbox.calls import RELEASED
from kong_plugins.adapters.outbox.queue import SUSPECT_AFTER
from kong_plugins.application.deliver import NOTHING, Batch, Queue
from kong_plugins.application.ports import LedgerUnavailable, OutboxEntry, Rejected
from kong_plugins.domain.windows import FixedWindow

if TYPE_CHECKING:
    from tests.simulation.invariants import Watch
    from tests.simulation.parties import Wire

Gone = Callable[[], frozenset[str]]
CLAIM_EVERY_S = 2.0

SILENT_US = 30_000_000


class TrimmedLedger(MemoryLedger):
    """``MemoryLedger`` whose outbox forgets. Positions are numbers that go on where a failover lost some; ``epoch``
    makes those that come again others, as the time in a stream's ids does."""

    epoch = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._trimmed: defaultdict[int, int] = defaultdict(int)

    def outbox(self, partition: int, after: str = "0", count: int = 100) -> tuple[OutboxEntry, ...]:
        first = max(0, int(after.partition("-")[0]) - self._trimmed[partition])
        return tuple(self._outbox[partition][first : first + count])

    def trim(self, partition: int, number: int) -> tuple[OutboxEntry, ...]:
        """Up to the entry of that number. Returns them."""
        removed = self._outbox[partition][: max(0, number - self._trimmed[partition])]
        del self._outbox[partition][: len(removed)]
        self._trimmed[partition] += len(removed)
        return tuple(removed)

    def _append(self, partition: int, event_id: str, event: bytes, posted: tuple[tuple[str, int], ...]) -> None:
        outbox = self._outbox[partition]
        number = self._trimmed[partition] + len(outbox) + 1
        outbox.append(OutboxEntry(f"{number}-{self.epoch}", event_id, event, posted))

    def again(self, partition: int, entry: OutboxEntry) -> None:
        """At the end once more."""
        self._append(partition, entry.event_id, entry.event, entry.posted)


@dataclass
class _Group:
    next: int = 0  # of the last entry handed out
    pending: dict[str, list[Any]] = field(default_factory=dict)  # by position: entry, consumer, deliveries


class MemoryStore:
    """``copy`` and ``restore``: all that is durable."""

    fails_over = True

    def begin(self, clock: Callable[[], int], limits: Mapping[str, int], partitions: Sequence[int]) -> None:
        self.ledger = TrimmedLedger(clock, **limits)
        self.clock = clock
        self.partitions = tuple(partitions)
        self.groups: dict[str, dict[int, _Group]] = {}
        self.heard_us: dict[str, int] = {}
        self.dead: list[tuple[int, str, str, OutboxEntry]] = []

    def ledger_for(self, clock: Callable[[], int]) -> TrimmedLedger:
        return self.ledger

    def knows(self, tenant: str, hold_id: str) -> bool:
        """There is a hold of that name, or its end is remembered."""
        return self.ledger._find(layout.member(tenant, hold_id), self.clock()) is not None

    def now_us(self, ledger: object) -> int:
        return self.clock()

    def tick(self) -> None:
        """It needs nothing to know the time."""

    def restart(self) -> None:
        """Everything is durable."""

    def close(self) -> None:
        """It ends with its process."""

    def queue(self, wire: Wire, sink: str, consumer: str, clock: Callable[[], float], gone: Gone) -> Queue:
        return MemoryQueue(wire, sink, consumer, clock, gone)

    def news(self, partition: int, watch: Watch) -> tuple[OutboxEntry, ...]:
        return self.ledger.outbox(partition, watch.durable.tails.get(partition, "0"), 1000)

    def outbox(self, partition: int) -> tuple[OutboxEntry, ...]:
        return self.ledger.outbox(partition, "0", 10**9)

    def committed(self, counters: Sequence[tuple[str, str, FixedWindow, int]]) -> list[int | None]:
        """As ``EndedCounters``."""
        found = []
        for tenant, line, window, start_us in counters:
            kept = self.ledger._counters.find(f"{layout.counter_path(tenant, line, window)}:{start_us}")
            found.append(None if kept is None else kept.counter.committed)
        return found

    def look(self, operation: str, args: tuple[Any, ...], answer: Any, watch: Watch) -> None:
        match operation:
            case "acknowledge":
                for entry in args[1]:
                    watch.acknowledged(entry.event_id)
            case "trim":
                again = [each.event_id for partition in self.partitions for each in self.outbox(partition)]
                watch.trimmed((each.event_id for each in answer), [*again, *(each[3].event_id for each in self.dead)])
            case "retry_dead":
                for partition in self.partitions:
                    watch.again(partition, self.news(partition, watch))

    def register(self, sink: str) -> None:
        self.groups.setdefault(sink, {each: _Group() for each in self.partitions})

    def take(self, sink: str, consumer: str, gone: frozenset[str], count: int, claim: bool, now_us: int) -> Batch:  # noqa: PLR0917
        self.register(sink)
        self.heard_us[consumer] = now_us
        if claim:
            batch = self._claim(sink, consumer, gone, count, now_us)
            if batch.entries:
                return batch
        taken: list[OutboxEntry] = []
        for partition, group in self.groups[sink].items():
            for entry in self.ledger.outbox(partition, f"{group.next}-0", count - len(taken)):
                group.next = int(entry.position.partition("-")[0])
                found = replace(entry, position=f"{partition}:{entry.position}")
                group.pending[found.position] = [found, consumer, 1]
                taken.append(found)
        return Batch(tuple(taken))

    def _claim(self, sink: str, consumer: str, gone: frozenset[str], count: int, now_us: int) -> Batch:
        left = [
            each
            for group in self.groups[sink].values()
            for each in group.pending.values()
            if each[1] in gone or each[1] in {consumer, RELEASED} or now_us - self.heard_us.get(each[1], 0) >= SILENT_US
        ]
        plain = [each for each in left if each[2] <= SUSPECT_AFTER][:count]
        for each in plain or left[:1]:
            each[1], each[2] = consumer, each[2] + 1
        if plain:
            return Batch(tuple(each[0] for each in plain), again=True)
        if left:
            return Batch((left[0][0],), again=True, suspected=left[0][2] - 1)
        return NOTHING

    def acknowledge(self, sink: str, entries: Sequence[OutboxEntry]) -> None:
        for entry in entries:
            self._group(sink, entry).pending.pop(entry.position, None)

    def bury(self, sink: str, rejected: Sequence[Rejected]) -> None:
        for each in rejected:
            if self._group(sink, each.entry).pending.pop(each.entry.position, None):
                self.dead.append((int(each.entry.position.partition(":")[0]), sink, each.reason, each.entry))

    def release(self, sink: str, entries: Sequence[OutboxEntry], counted: bool) -> None:
        for entry in entries:
            found = self._group(sink, entry).pending.get(entry.position)
            if found is not None:
                found[1], found[2] = RELEASED, found[2] if counted else 0

    def trim(self) -> list[OutboxEntry]:
        """What every group has acknowledged and all before it."""
        removed: list[OutboxEntry] = []
        for partition in self.partitions:
            groups = [each[partition] for each in self.groups.values()]
            if groups:
                removed += self.ledger.trim(partition, min(map(_done, groups)))
        return removed

    def retry_dead(self) -> list[OutboxEntry]:
        letters, self.dead = self.dead, []
        for partition, _, _, entry in letters:
            self.ledger.again(partition, entry)
        return [entry for _, _, _, entry in letters]

    def drained(self) -> bool:
        return not self.dead and all(
            not group.pending and not self.ledger.outbox(partition, f"{group.next}-0", 1)
            for groups in self.groups.values()
            for partition, group in groups.items()
        )

    def copy(self) -> bytes:
        kept = {name: value for name, value in vars(self.ledger).items() if name not in {"_clock", "_lock"}}
        return pickle.dumps((kept, self.groups, self.heard_us, self.dead))

    def restore(self, copied: bytes) -> None:
        kept, self.groups, self.heard_us, self.dead = pickle.loads(copied)
        vars(self.ledger).update(kept)
        self.ledger.epoch += 1

    def _group(self, sink: str, entry: OutboxEntry) -> _Group:
        return self.groups[sink][int(entry.position.partition(":")[0])]


def _done(group: _Group) -> int:
    if not group.pending:
        return group.next
    return min(int(position.partition(":")[2].partition("-")[0]) for position in group.pending) - 1


class MemoryQueue:
    """A sink's place in that outbox, over a process' way to the store. ``gone``: consumers known to have ended."""

    def __init__(self, wire: Wire, sink: str, consumer: str, clock: Callable[[], float], gone: Gone) -> None:
        self._wire = wire
        self._sink = sink
        self._consumer = consumer
        self._clock = clock
        self._gone = gone
        self._claim_at = 0.0

    def take(self, count: int) -> Batch:
        claim = self._clock() >= self._claim_at
        batch = self._take(count, claim)
        if claim and not batch.again:
            self._claim_at = self._clock() + CLAIM_EVERY_S
        return batch

    def take_ahead(self, count: int) -> Batch:
        return NOTHING if self._clock() >= self._claim_at else self._take(count, False)

    def _take(self, count: int, claim: bool) -> Batch:
        try:
            now_us = round(self._clock() * 1e6)
            found: Batch = self._wire.call("take", self._sink, self._consumer, self._gone(), count, claim, now_us)
        except LedgerUnavailable:
            self._claim_at = 0.0  # it may have had effect: then it is pending, and ours
            raise
        return found

    def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        self._wire.call("acknowledge", self._sink, tuple(entries))

    def bury(self, rejected: Sequence[Rejected]) -> None:
        self._wire.call("bury", self._sink, tuple(rejected))

    def release(self, entries: Sequence[OutboxEntry], *, counted: bool) -> None:
        self._claim_at = 0.0
        self._wire.call("release", self._sink, tuple(entries), counted)
