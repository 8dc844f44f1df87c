"""All sinks' groups together: where they stand, what may be trimmed, dead letters, sinks that are no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kong_plugins.adapters.ledger.connect import open_client
from kong_plugins.adapters.outbox.calls import RELEASED, Call, Calls, dead_count_key, dead_key, outbox_key
from kong_plugins.adapters.outbox.entries import by_partition, read_entry, text
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.partitions import PARTITIONS

TIMEOUT_S = 5.0  # A batch is megabytes; a server that loads its file or forks answers late.
ATTENDED_S = 60.0
TIDY_AFTER_S = 600.0
_PAGE = 100
_FIRST = "0"


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """Where a sink stands, over all partitions. ``pending``: handed to a collector and not acknowledged; ``waiting``:
    not handed out yet; ``oldest_s``: age of the oldest of both, None when there is none; ``heard_s``: since a collector
    asked for this sink's entries, None: no consumer is left."""

    sink: str
    pending: int = 0
    waiting: int = 0
    oldest_s: float | None = None
    heard_s: float | None = None
    dead: int = 0

    @property
    def behind(self) -> int:
        return self.pending + self.waiting

    @property
    def attended(self) -> bool:
        """A collector works for it."""
        return self.heard_s is not None and self.heard_s < ATTENDED_S


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that a sink refused. ``position`` is that of the dead letter, for retry and drop."""

    position: str
    sink: str
    reason: str
    entry: OutboxEntry


class Outbox:
    """Threads may share it.

    Raises:
        LedgerUnavailable: from every method.
    """

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def close(self) -> None:
        self.calls.close()

    def register(self, sinks: Sequence[str]) -> None:
        """Give each sink its group where it has none yet: a group that is not there cannot keep others from trimming,
        so all sinks of a process are registered before the first of them reads."""
        self.calls.scripts([Call("join", (outbox_key(each),), tuple(sinks)) for each in range(PARTITIONS)])

    def status(self) -> tuple[SinkStatus, ...]:
        """Every sink that has a group or dead letters, by name."""
        answers = self.calls.scripts(
            [Call("status", (outbox_key(each), dead_count_key(each)), (RELEASED,)) for each in range(PARTITIONS)]
        )
        sums: dict[str, list[int]] = {}
        for _, groups, dead in answers:
            for group, pending, waiting, oldest, heard, _ in groups:
                found = sums.setdefault(text(group), [0, 0, -1, -1, 0])
                found[0] += pending
                found[1] += waiting
                found[2] = max(found[2], oldest)
                found[3] = heard if found[3] < 0 else min(found[3], heard) if heard >= 0 else found[3]
            for name, number in zip(dead[::2], dead[1::2], strict=True):
                sums.setdefault(text(name), [0, 0, -1, -1, 0])[4] += int(number)
        return tuple(
            SinkStatus(sink, pending, waiting, _seconds(oldest), _seconds(heard), dead)
            for sink, (pending, waiting, oldest, heard, dead) in sorted(sums.items())
        )

    def trim(self, keep_s: float = 0.0) -> int:
        """Remove what every sink has acknowledged and is older than ``keep_s``. Returns how many entries."""
        keep_ms = int(1000 * keep_s)
        return sum(self.calls.scripts([Call("trim", (outbox_key(each),), (keep_ms,)) for each in range(PARTITIONS)]))

    def tidy(self, sink: str, consumer: str, *, after_s: float = TIDY_AFTER_S, leave: bool = False) -> int:
        """Remove a sink's consumers that have said nothing for ``after_s`` and hold nothing. ``consumer`` asks, and
        stays unless it is about to ``leave``. Returns how many went, over all partitions."""
        args = (sink, int(1000 * after_s), consumer, "1" if leave else "0")
        return sum(self.calls.scripts([Call("tidy", (outbox_key(each),), args) for each in range(PARTITIONS)]))

    def forget(self, sink: str) -> bool:
        """Take a sink's position away: it is waited for no more. Its dead letters stay. False: there was none."""
        return any(self.calls.scripts([Call("forget", (outbox_key(each),), (sink,)) for each in range(PARTITIONS)]))

    def dead_letters(self, sink: str | None = None) -> Iterator[DeadLetter]:
        """Partition by partition, oldest first."""
        for partition in range(PARTITIONS):
            after = _FIRST
            while True:
                (page,) = self.calls.scripts([Call("dead", (dead_key(partition),), (after, _PAGE))])
                for position, fields in page:
                    letter = DeadLetter(
                        f"{partition}:{position.decode()}",
                        text(fields[1]),
                        text(fields[5]),
                        read_entry(partition, fields[3], fields[6:]),
                    )
                    if sink in (None, letter.sink):
                        yield letter
                if len(page) < _PAGE:
                    break
                after = page[-1][0].decode()

    def retry(self, positions: Sequence[str]) -> int:
        """Put dead letters back at the outbox's end, for every sink. Returns how many there were."""
        return self._unbury("retry", positions)

    def drop(self, positions: Sequence[str]) -> int:
        """Remove dead letters for good. Returns how many there were."""
        return self._unbury("drop", positions)

    def _unbury(self, what: str, positions: Sequence[str]) -> int:
        calls = [
            Call("unbury", (outbox_key(each), dead_key(each), dead_count_key(each)), (what, *ids[at : at + _PAGE]))
            for each, ids in by_partition(positions).items()
            for at in range(0, len(ids), _PAGE)
        ]
        return sum(self.calls.scripts(calls))


def connect_outbox(url: str, *, timeout_s: float = TIMEOUT_S) -> Outbox:
    """The outbox of the ledger at ``url``. Connects when first used (a Cluster: now).

    Raises:
        ValueError: not a ledger's URL.
        LedgerUnavailable: no node of a Cluster answered.
    """
    return Outbox(Calls(open_client(url, timeout_s=timeout_s)))


def _seconds(milliseconds: int) -> float | None:
    return milliseconds / 1000 if milliseconds >= 0 else None
