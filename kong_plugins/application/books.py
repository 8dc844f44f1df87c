"""Do the books balance: billed tokens against what the engine says it processed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from kong_plugins.application.ports import Ledger, OutboxEntry
from kong_plugins.domain.events import ADJUSTMENT_TYPE, REVERSAL_TYPE
from kong_plugins.domain.partitions import PARTITIONS

PAGE = 1000


@dataclass(slots=True)
class Books:
    """Sums over billing events: tokens are what is billed, less what was taken back. ``posted`` is what the ledger put
    on counters of a tenant's budgets, by line key; a reversal's is negative."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    evidence: Counter[str] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    posted: Counter[tuple[str, str]] = field(default_factory=Counter)
    duplicates: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


def read_events(ledger: Ledger) -> Iterable[OutboxEntry]:
    """Every event in the outbox, partition by partition."""
    for partition in range(PARTITIONS):
        after = "0"
        while page := ledger.outbox(partition, after, PAGE):
            yield from page
            after = page[-1].position


def sum_events(entries: Iterable[OutboxEntry]) -> Books:
    """Add events up, each id once; a second event with the same id is counted in ``duplicates`` only."""
    books, seen = Books(), set[str]()
    for entry in entries:
        if entry.event_id in seen:
            books.duplicates += 1
            continue
        seen.add(entry.event_id)
        event = json.loads(entry.event)
        data, kind = event["data"], event["type"]
        for line, amount in entry.posted:
            books.posted[data["tenant"], line] += amount
        if kind == ADJUSTMENT_TYPE:
            continue
        sign = -1 if kind == REVERSAL_TYPE else 1
        books.prompt += sign * data["prompt"]
        books.completion += sign * data["completion"]
        books.cached += sign * data["cached"]
        books.tenants[data["tenant"]] += sign * (data["prompt"] + data["completion"])
        if sign > 0:
            books.requests += 1
            books.outcomes[data["outcome"]] += 1
            books.evidence[data["evidence"]] += 1
    return books
