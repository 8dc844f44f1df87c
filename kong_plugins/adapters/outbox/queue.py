"""A sink's consumer group: what it has not had, in order; what ended consumers left behind; acknowledging."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from kong_plugins.adapters.outbox.calls import RELEASED, Call, Calls, dead_count_key, dead_key, outbox_key
from kong_plugins.adapters.outbox.entries import by_partition, read_entry, text
from kong_plugins.application.deliver import NOTHING, Batch
from kong_plugins.application.ports import LedgerUnavailable, OutboxEntry, Rejected
from kong_plugins.domain.partitions import PARTITIONS

SILENT_S = (
    120.0  # Above the longest write of a batch, a slow receiver's ten timeouts: a consumer reads again after each.
)
CLAIM_EVERY_S = 2.0
SUSPECT_AFTER = 3  # deliveries of which nobody heard again
CALL_ENTRIES = 128  # a script's answer stays small: measured 9 µs an entry, 25 µs in answers of 2,000
IDS_MAX = 1000  # arguments that Lua unpacks at once
BATCH_BYTES_MAX = 32 * 1024 * 1024
REASON_CHARS_MAX = 2000


def consumer_name() -> str:
    """``host-pid-random``: two processes never share one, also when a pid comes again."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class GroupQueue:
    """``Queue`` over a consumer group of every partition. For one thread, and one that takes ahead.

    ``silent_s``: how long a consumer may say nothing before its entries are taken over. One on this host whose process
    is gone is found at once. After a failure of the ledger, what it handed out unheard is taken over from ourselves.
    """

    def __init__(
        self,
        calls: Calls,
        group: str,
        consumer: str,
        *,
        silent_s: float = SILENT_S,
        claim_every_s: float = CLAIM_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._group = group
        self._consumer = consumer
        self._silent_ms = int(1000 * silent_s)
        self._claim_every_s = claim_every_s
        self._clock = clock
        self._claim_at = 0.0
        self._gone = {RELEASED, consumer}

    def take(self, count: int) -> Batch:
        """Entries of one partition stay in order. What was left behind goes before what is new."""
        if self._clock() >= self._claim_at:
            batch = self._claim(count)
            if batch.entries:
                return batch
            self._claim_at = self._clock() + self._claim_every_s
        return self._new(count)

    def take_ahead(self, count: int) -> Batch:
        """Nothing when it is time to look for what was left behind: that cannot be told from what is in hand."""
        return NOTHING if self._clock() >= self._claim_at else self._new(count)

    def _new(self, count: int) -> Batch:
        try:
            return Batch(self._read(count))
        except LedgerUnavailable:
            self._claim_at = 0.0  # it may have had effect: then it is pending, and ours
            raise

    def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        found = by_partition(entry.position for entry in entries)
        self._calls.commands([("XACK", outbox_key(each), self._group, *ids) for each, ids in found.items()])

    def bury(self, rejected: Sequence[Rejected]) -> None:
        found: dict[int, list[str]] = {}
        for each in rejected:
            partition, _, stream_id = each.entry.position.partition(":")
            found.setdefault(int(partition), []).extend((stream_id, each.reason[:REASON_CHARS_MAX]))
        self._calls.scripts(
            [
                Call(
                    "bury",
                    (outbox_key(each), dead_key(each), dead_count_key(each)),
                    (self._group, *pairs[at : at + 200]),
                )
                for each, pairs in found.items()
                for at in range(0, len(pairs), 200)
            ]
        )

    def release(self, entries: Sequence[OutboxEntry], *, counted: bool) -> None:
        self._claim_at = 0.0
        found = by_partition(entry.position for entry in entries)
        about = (self._group, RELEASED, "1" if counted else "0")
        self._calls.scripts(
            [
                Call("release", (outbox_key(each),), (*about, *ids[at : at + IDS_MAX]))
                for each, ids in found.items()
                for at in range(0, len(ids), IDS_MAX)
            ]
        )

    def _read(self, count: int) -> tuple[OutboxEntry, ...]:
        """All partitions in one round trip; those that have more, again, until there are ``count``."""
        entries: list[OutboxEntry] = []
        share = min(CALL_ENTRIES, max(1, count // PARTITIONS))
        asked = [(partition, share) for partition in range(PARTITIONS)]
        while asked:
            most = BATCH_BYTES_MAX // len(asked)
            answers = self._calls.scripts(
                [Call("take", (outbox_key(each),), (self._group, self._consumer, size, most)) for each, size in asked]
            )
            more = set()
            for (partition, size), answer in zip(asked, answers, strict=True):
                entries += [read_entry(partition, *each) for each in answer]
                if len(answer) >= size:
                    more.add(partition)
                else:
                    more.discard(partition)
            left = count - len(entries)
            if not more or left < len(more):
                break
            calls, size = divmod(left // len(more), CALL_ENTRIES)
            sizes = [CALL_ENTRIES] * min(calls, 8) or [size]
            asked = [(partition, size) for partition in sorted(more) for size in sizes]
        return tuple(entries)

    def _claim(self, count: int) -> Batch:
        """What was left behind, but suspects; where there is nothing else, one suspect."""
        share = min(CALL_ENTRIES, max(1, count // PARTITIONS))
        while True:
            answers = self._claim_from(range(PARTITIONS), share, suspect=False)
            others = {text(name) for _, _, _, names in answers for name in names}
            ended = {name for name in others - self._gone if _has_ended(name)}
            self._gone |= ended
            entries = [
                read_entry(partition, *each) for partition, (taken, _, _, _) in enumerate(answers) for each in taken
            ]
            if entries:
                return Batch(tuple(entries), again=True)
            if not ended:
                break
        for partition, (_, _, suspects, _) in enumerate(answers):
            if suspects == b"1":
                (taken, deliveries, _, _), *_ = self._claim_from((partition,), 1, suspect=True)
                if taken:
                    return Batch((read_entry(partition, *taken[0]),), again=True, suspected=deliveries)
        return NOTHING

    def _claim_from(self, partitions: Sequence[int], count: int, *, suspect: bool) -> list[Any]:
        args = (
            self._group,
            self._consumer,
            count,
            self._silent_ms,
            SUSPECT_AFTER,
            "1" if suspect else "0",
            *self._gone,
        )
        return self._calls.scripts([Call("claim", (outbox_key(each),), args) for each in partitions])


def _has_ended(consumer: str) -> bool:
    """Whether it was a process of this host and is no more. Two hosts of one name cost a second delivery, no more."""
    host, _, rest = consumer.rpartition("-")[0].rpartition("-")
    if host != socket.gethostname() or not rest.isdigit():
        return False
    if int(rest) == os.getpid():
        return True  # ours now, with another random part: a container that started again
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
