"""Events that the ledger has and the books have not: in the outbox, among the dead letters, or not even written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kong_plugins.adapters.books.reconcile_queries import ReconcileQueries
from kong_plugins.adapters.event_records import (
    EARLIEST,
    AdjustmentEvent,
    Event,
    NotAnEvent,
    RequestEvent,
    read_entry,
    read_event,
)
from kong_plugins.adapters.ledger.audit import OpenHold
from kong_plugins.application.ports import Ledger, OutboxEntry
from kong_plugins.application.reconcile_events import UNHEARD_US, BookedEvent
from kong_plugins.application.reconcile_ledger import Posting
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.partitions import PARTITIONS

PAGE = 1000
OUTBOX = "outbox"
DEAD = "dead letter"
HOLD = "hold"


@dataclass(slots=True)
class Undelivered:
    """``listed``: event id, where it is, and why it stays there (empty: it is on its way)."""

    events: list[BookedEvent] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)
    listed: list[tuple[str, str, str]] = field(default_factory=list)
    _started: dict[str, int] = field(default_factory=dict)

    def add_entries(self, entries: Iterable[tuple[OutboxEntry, str, str]], books: ReconcileQueries) -> None:
        """Entries with where they are and why, each id once; those that are in the books are left out."""
        page: list[tuple[OutboxEntry, str, str]] = []
        for each in entries:
            page.append(each)
            if len(page) == PAGE:
                self._add(page, books)
                page = []
        self._add(page, books)

    def _add(self, page: list[tuple[OutboxEntry, str, str]], books: ReconcileQueries) -> None:
        known = books.known([entry.event_id for entry, _, _ in page]) if page else set()
        known |= {event_id for event_id, _, _ in self.listed}
        for entry, where, why in page:
            if entry.event_id in known:
                continue
            known.add(entry.event_id)
            try:
                event, posted = read_entry(entry)
            except NotAnEvent as error:
                self.listed.append((entry.event_id, where, why or str(error)))
                continue
            self.listed.append((entry.event_id, where, why))
            booked = self._booked(event, where, books)
            if booked is not None:
                self._started[booked.event_id] = booked.started_us
                self.events.append(booked)
                self.postings += [
                    Posting(event.data.tenant, line, entry.event_id, amount, booked.started_us)
                    for line, amount in posted.items()
                ]

    def add_holds(self, holds: Iterable[OpenHold], now_us: int) -> None:
        """Requests without an event yet, as running until now. After the entries: what ended meanwhile is there."""
        for hold in holds:
            if hold.hold_id in self._started:
                continue
            try:
                event = read_event(hold.event)
            except NotAnEvent:
                continue  # an expiry written by the ledger itself: it tells no model, hence nothing of an engine
            if isinstance(event, RequestEvent):
                self.events.append(_request(event, HOLD, now_us))

    def _booked(self, event: Event, where: str, books: ReconcileQueries) -> BookedEvent | None:
        if isinstance(event, RequestEvent):
            return _request(event, where, 0)
        if isinstance(event, AdjustmentEvent):
            return None  # money, no tokens
        data, ended_us = event.data, _us(event.time)
        started_us = self._started.get(data.reverses) or books.started(data.reverses) or ended_us
        return BookedEvent(
            event_id=event.id,
            kind="reversal",
            model=data.model,
            started_us=started_us,
            ended_us=ended_us,
            prompt=data.prompt,
            completion=data.completion,
            tenant=data.tenant,
            where=where,
        )


def outbox_entries(ledger: Ledger) -> Iterator[tuple[OutboxEntry, str, str]]:
    """Everything in the outbox, delivered or not."""
    for partition in range(PARTITIONS):
        after = "0"
        while page := ledger.outbox(partition, after, PAGE):
            for entry in page:
                yield entry, OUTBOX, ""
            after = page[-1].position


def _request(event: RequestEvent, where: str, until_us: int) -> BookedEvent:
    data = event.data
    return BookedEvent(
        event_id=event.id,
        kind="request",
        model=data.model,
        started_us=data.started_ms * 1000,
        ended_us=max(until_us, _us(event.time) + (UNHEARD_US if data.outcome == Outcome.EXPIRED.value else 0)),
        prompt=data.prompt,
        completion=data.completion,
        evidence=data.evidence,
        outcome=data.outcome,
        status=data.status,
        choices=data.choices or 1,
        prompt_bound=data.prompt_bound or 0,
        completion_bound=data.completion_bound or 0,
        tenant=data.tenant,
        where=where,
    )


def _us(moment: datetime) -> int:
    return (moment - EARLIEST) // timedelta(microseconds=1)
