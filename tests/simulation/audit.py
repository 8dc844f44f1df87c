"""What has to add up when the world is at rest: outbox and books, attempts and charges, double entry, the engine's own
counters, the ledger's counters."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.event_records import AdjustmentEvent, RequestEvent, ReversalEvent, read_entry
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.reconcile import EngineCheck, EventsInMemory
from kong_plugins.application.reconcile_events import UNHEARD_US, BookedEvent, Pace
from kong_plugins.application.reconcile_ledger import CounterReader, Posting, Postings, compare_counters
from kong_plugins.application.reconcile_scrapes import lives_of
from kong_plugins.domain.double_entry import Adjustment, Charged, adjustment_entries, charge_entries
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.rating import MeteredEvent, PriceList, rate_event
from kong_plugins.domain.usage import Usage
from tests.simulation.account import Seen, check
from tests.simulation.leased import Admitted

if TYPE_CHECKING:
    from tests.simulation.world import World

SECOND = 1_000_000
SLACK_US = 2 * SECOND  # gateways' clocks are off by up to half a second
PACE = Pace(tokens_s=1200.0, notice_us=SECOND)  # faster than the engine generates
REMEMBERED_US = 900 * SECOND


def audit(world: World) -> None:
    """
    Raises:
        Violation: something does not add up.
    """
    watch = world.watch
    rows = list(world.books.rows.values())
    events = [read_entry(each)[0] for each in rows]
    _books(world, rows)
    check(not watch.durable.open, "held at rest", watch.durable.open)
    check(not watch.durable.leases, "leased at rest", watch.durable.leases)
    held = [each for each in watch.durable.counters.items() if each[1][1]]
    check(not held, "held by nobody", held)
    _requests(world, events)
    _attempts(world, events)
    _double_entry(events, world.prices)
    if not watch.failovers:
        _engine(world, events)
        watch.counts.engines += 1
        if not watch.clock_went_back and not world.clocks_jumped:
            _counters(world, rows, events)
    _begin_anew(world)


def _books(world: World, rows: Sequence[OutboxEntry]) -> None:
    """Exactly the outbox's events, each once."""
    watch = world.watch
    check(not watch.undelivered, "events that the books never got", list(watch.undelivered)[:5])
    ids = Counter(each.event_id for each in rows)
    twice = [event_id for event_id, count in ids.items() if count > 1]
    check(not twice, "an event is in the books twice", twice[:5])
    missing = watch.sunk.keys() - ids.keys()
    check(not missing, "an event left the books", sorted(missing)[:5])
    check(not world.store.dead, "dead letters at rest", world.store.dead)
    world.books.compare()


def _requests(world: World, events: Sequence[Any]) -> None:
    """Whatever was held has ended, with an event in the books, unless a failover took it."""
    if world.watch.failovers:
        return
    lost = [each for each in world.watch.promised if each not in {**world.watch.heard, **world.lost_postings}]
    check(not lost, "a settlement that was taken was never posted", lost[:5])
    known = {each.id: each for each in events}
    for hold_id, seen in world.watch.durable.holds.items():
        check(seen.state in {"settled", "expired"}, "a request without an end", hold_id, seen)
        check(hold_id in known, "a request without an event in the books", hold_id, seen)
        told = known[hold_id].data.prompt + known[hold_id].data.completion
        check(seen.state == "expired" or told == seen.tokens, "charged other than its event says", hold_id, seen, told)
    for hold_id, first in _untold(world, known).items():
        gone = first.late or not first.process.alive
        check(gone and hold_id not in world.watch.promised, "admitted without the ledger, and forgotten", first)
        world.watch.counts.untold += 1


def _untold(world: World, known: Container[str]) -> dict[str, Admitted]:
    """Requests of which nothing is heard any more: who had admitted them ended, or came too late, before it told the
    ledger, and nobody was there for their settlement."""
    return {hold_id: first for hold_id, first in world.watch.leased.unasked.items() if hold_id not in known}


def _attempts(world: World, events: Sequence[Any]) -> None:
    """What one asked for is charged as the dearest attempt at it, over counters and books alike."""
    watch = world.watch
    tokens, taken_back = Counter[str](), Counter[str]()
    for event in events:
        if isinstance(event, RequestEvent):
            tokens[event.id] = event.data.prompt + event.data.completion
        elif isinstance(event, ReversalEvent):
            taken_back[event.data.reverses] += event.data.prompt + event.data.completion
    for event_id, amount in taken_back.items():
        check(event_id not in tokens or tokens[event_id] == amount, "taken back is not what was charged", event_id)
    for same in world.logical.values():
        hold_ids = [hold_id for one in same for hold_id in one.hold_ids]
        seen = [watch.durable.holds[each] for each in hold_ids if each in watch.durable.holds]
        untold = (same[0].tenant, same[0].asked) in watch.leased.apart
        if watch.failovers or untold or _forgotten(seen, watch.durable.latest_us if watch.clock_went_back else 0):
            watch.counts.apart += 1
            continue
        charges = [tokens[each] - taken_back[each] for each in hold_ids]
        dearest = max((tokens[each] for each in hold_ids), default=0)
        check(min(charges, default=0) >= 0, "more was taken back than charged", same)
        if len(same) == 1 and len(seen) <= 4:
            check(
                sum(charges) == dearest,
                "not charged as the dearest attempt",
                same,
                charges,
                [tokens[e] for e in hold_ids],
            )
        check(sum(charges) >= dearest, "something was had for nothing", same, charges)


def _forgotten(seen: Sequence[Seen], latest_us: int) -> bool:
    """Its attempts lie so far apart, by a clock that may have gone ahead to ``latest_us`` and back, that the ledger
    need not know of the first any more."""
    times = [each.made_us for each in seen] + [each.ended_us for each in seen if each.ended_us]
    return bool(seen) and max(*times, latest_us) - min(times) >= REMEMBERED_US


def _double_entry(events: Sequence[Any], prices: PriceList) -> None:
    """Everything is written on two accounts, and what tenants owe is what was rated."""
    accounts, owed = defaultdict[tuple[str, str], int](int), Counter[str]()
    rated: dict[str, int] = {}
    for event in events:
        data, time_ms = event.data, round(event.time.timestamp() * 1000)
        if isinstance(event, AdjustmentEvent):
            moved = Adjustment(
                event.id, time_ms, data.tenant, data.kind, data.amount, data.currency, data.account, data.reason
            )
            entries, owes = adjustment_entries(moved), -data.amount
        else:
            reversal = isinstance(event, ReversalEvent)
            usage = Usage(data.prompt, data.completion, data.cached, data.reasoning)
            outcome = "" if reversal else data.outcome
            charge = rate_event(
                MeteredEvent(event.id, data.tenant, data.model, time_ms, usage, outcome, reversal), prices
            )
            check(charge is not None, "no price", event)
            assert charge is not None
            entries = charge_entries(
                Charged(event.id, time_ms, data.tenant, data.model, charge.amount, prices.currency)
            )
            owes = rated[event.id] = charge.amount
        owed[data.tenant] += owes
        check(sum(each.amount for each in entries) == 0, "one-sided", entries)
        for entry in entries:
            accounts[entry.account, entry.currency] += entry.amount
    check(sum(accounts.values()) == 0, "accounts do not sum to zero", accounts)
    for tenant, amount in owed.items():
        check(accounts[f"receivable:{tenant}", "EUR"] == amount, "a tenant owes something else", tenant, amount)
    for event_id, amount in rated.items():
        request = event_id.removeprefix("reversal:")
        if request != event_id and request in rated:
            check(amount == -rated[request], "a reversal gives back another amount", event_id, amount)


def _engine(world: World, events: Sequence[Any]) -> None:
    """No token is unexplained."""
    booked = [each for event in events if (each := _booked(event)) is not None and each.model == "r1"]
    booked += [_run_of(first) for first in _untold(world, {event.id for event in events}).values()]
    lives = lives_of(world.scrapes)
    end_us = world.kernel.now_us + SECOND
    report = EngineCheck("r1", lives, EventsInMemory(booked), PACE, SLACK_US).report(world.began_us - SECOND, end_us)
    if report is not None:
        compared = report.compared
        check(not compared.unexplained, "the engine counted other tokens", compared.unexplained, compared.difference)
        check(not report.leaks, "somewhere something leaked", report.leaks)


def _booked(event: Any) -> BookedEvent | None:
    if isinstance(event, AdjustmentEvent):
        return None
    data, ended_us = event.data, round(event.time.timestamp() * 1e6)
    if isinstance(event, ReversalEvent):
        return BookedEvent(event.id, "reversal", data.model, ended_us, ended_us, data.prompt, data.completion)
    unheard = UNHEARD_US if data.outcome == Outcome.EXPIRED else 0
    return BookedEvent(
        event.id,
        "request",
        data.model,
        data.started_ms * 1000,
        ended_us + unheard,
        data.prompt,
        data.completion,
        data.evidence,
        data.outcome,
        data.status,
        data.choices or 1,
        data.prompt_bound or 0,
        data.completion_bound or 0,
        data.tenant,
    )


def _run_of(first: Admitted) -> BookedEvent:
    """What an expired hold's event would say of it."""
    record = json.loads(first.request.event)["data"]
    started_us, heard_us = record["started_ms"] * 1000, first.true_us + UNHEARD_US
    bounds = (record.get("choices", 1), record["prompt_bound"], record["completion_bound"])
    about = ("request", record["model"], started_us, heard_us, 0, 0, record["evidence"], record["outcome"], 0)
    return BookedEvent(first.request.hold_id, *about, *bounds, record["tenant"])


class _Posted:
    """``PostedEvents`` over postings in memory."""

    def __init__(self, postings: Sequence[Posting]) -> None:
        self._postings = postings

    def postings(self, start_us: int, end_us: int, slack_us: int) -> Postings:
        sums: Counter[tuple[str, str]] = Counter()
        near = []
        for each in self._postings:
            edge = min(abs(each.started_us - start_us), abs(each.started_us - end_us)) < slack_us
            if edge:
                near.append(each)
            elif start_us <= each.started_us < end_us:
                sums[each.tenant, each.line] += each.amount
        return Postings(sums, near)


def _counters(world: World, rows: Sequence[OutboxEntry], events: Sequence[Any]) -> None:
    """The hour's counters are what its events posted, as the reconciliation of a day compares them."""
    started: dict[str, int] = {e.id: e.data.started_ms * 1000 for e in events if isinstance(e, RequestEvent)}
    fresh = []
    for entry, event in zip(rows, events, strict=True):
        of = started.get(event.data.reverses if isinstance(event, ReversalEvent) else event.id)
        fresh += [Posting(event.data.tenant, line, event.id, amount, of or 0) for line, amount in entry.posted]
    now_us = world.kernel.now_us
    world.postings = [each for each in world.postings if each.started_us > now_us - 7200 * SECOND] + fresh
    reader = CounterReader(world.quiet_ledger(), world.store, now_us - 3600 * SECOND, now_us, "UTC")
    counters = [each for each in reader.read((), now_us).counters if each.line == "hourly"]
    for compared in compare_counters(
        counters, _Posted([p for p in world.postings if p.line == "hourly"]), (), SLACK_US
    ):
        if compared.counter.start_us >= world.counted_since_us:
            world.watch.counts.windows += 1
            check(not compared.unexplained, "books and counters differ", compared)


def _begin_anew(world: World) -> None:
    """The next epoch has its own requests; the store and everybody's clocks go on."""
    if world.watch.failovers or world.watch.clock_went_back or world.clocks_jumped:
        world.counted_since_us = world.kernel.now_us  # what was counted before is not looked at any more
    world.watch.forget()
    world.books.rows.clear()
    world.logical.clear()
    world.clients.begin_anew()
    world.scrapes[:] = world.scrapes[-1:]
    world.began_us = world.kernel.now_us
    world.clocks_jumped = world.watch.clock_went_back = False
