"""A day's reconciliation, put together: ledger, outbox, books and engines, read in an order that loses nothing.

What moves while we read moves one way: from a hold to the outbox to the books. So holds are read first, the books last,
and the counters before and after; whatever is found twice is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kong_plugins.adapters.books.engine_counts import load_scrapes
from kong_plugins.adapters.books.opening import open_books
from kong_plugins.adapters.books.reconcile_queries import DaySums, ReconcileQueries, Suspects
from kong_plugins.adapters.books.undelivered import DEAD, Undelivered, outbox_entries
from kong_plugins.adapters.engine_metrics import EngineScraper
from kong_plugins.adapters.ledger import RedisLedger, connect_ledger
from kong_plugins.adapters.ledger.audit import LedgerAudit, OpenHold, connect_audit
from kong_plugins.adapters.outbox import Outbox, connect_outbox
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.reconcile import EngineCheck, EngineReport, EventsInMemory
from kong_plugins.application.reconcile_events import Pace
from kong_plugins.application.reconcile_ledger import CounterCompared, CounterReader, compare_counters, moved
from kong_plugins.application.reconcile_scrapes import Place, Scrape, lives_of
from kong_plugins.domain.periods import Period

LEDGER_TIMEOUT_S = 5.0
BOOKS_WAIT_S = 30.0
STALE_US = 600_000_000  # a scrape every few seconds is usual: after ten minutes nobody scrapes


@dataclass(frozen=True, slots=True)
class Options:
    """``model``: only this one. ``aliases``: engine's name of a model by the name in events. ``pace``: None: as the
    books show it. ``ledger_url``: None: the ledger is not looked at, nor are engines where ``engine_side`` is off."""

    period: Period
    books: Path
    ledger_url: str | None
    engines: tuple[str, ...] = ()
    engine_side: bool = True
    model: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    pace_given: bool = False
    slack_us: int = 1_000_000


@dataclass(slots=True)
class Result:
    """``missing``: what could not be compared, and what to do about it. ``skipped``: what never can be."""

    period: Period
    now_us: int
    day: list[DaySums] = field(default_factory=list)
    engines: list[EngineReport] = field(default_factory=list)
    paces: dict[str, Pace] = field(default_factory=dict)
    counters: list[CounterCompared] = field(default_factory=list)
    undelivered: list[tuple[str, str, str]] = field(default_factory=list)
    holds: list[OpenHold] = field(default_factory=list)
    unposted: list[tuple[str, str, int]] = field(default_factory=list)
    suspects: Suspects = field(default_factory=lambda: Suspects((), ()))
    skipped: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def unexplained(self) -> bool:
        return any(each.compared.unexplained for each in self.engines) or any(
            each.unexplained for each in self.counters
        )

    @property
    def status(self) -> int:
        """1: something is unexplained; 2: nothing is, but not all could be compared; 0: all of it adds up."""
        return 1 if self.unexplained else 2 if self.missing else 0


def reconcile(options: Options, say: Callable[[str], None]) -> Result:
    """``say`` is told what is done now.

    Raises:
        BooksUnavailable: there are no books.
        LedgerUnavailable: the ledger went away while it was read.
        ValueError: not an address, or not a ledger's URL.
    """
    period = options.period
    start_us, end_us = period.start_ms * 1000, period.end_ms * 1000
    result = Result(period, time.time_ns() // 1000)
    scrapes = _scrape_now(options, result, say)
    result.now_us = time.time_ns() // 1000
    undelivered = Undelivered()
    with ExitStack() as resources:
        before = None
        entries: list[tuple[OutboxEntry, str, str]] = []
        side = resources.enter_context(_ledger_side(options)) if options.ledger_url is not None else None
        if side is not None:
            with open_books(options.books, read_only=True, wait_s=BOOKS_WAIT_S) as connection:
                posted = ReconcileQueries(connection).postings(start_us, end_us, 0).sums.keys()
            reader = CounterReader(side.ledger, side.audit, start_us, end_us, period.time_zone)
            say("reading the ledger's counters")
            before = reader.read(posted, time.time_ns() // 1000)
            say("reading open holds and the outbox")
            result.holds = list(side.audit.open_holds())
            entries = [*outbox_entries(side.ledger), *_dead_letters(side.outbox)]
        say("reading the books")
        connection = resources.enter_context(open_books(options.books, read_only=True, wait_s=BOOKS_WAIT_S))
        queries = ReconcileQueries(connection)
        undelivered.add_entries(entries, queries)
        result.undelivered = undelivered.listed
        known = queries.known([hold.hold_id for hold in result.holds])
        result.holds = [hold for hold in result.holds if hold.hold_id not in known]
        undelivered.add_holds(result.holds, result.now_us)
        result.day = [each for each in queries.day(start_us, end_us) if options.model in (None, each.model)]
        if side is not None and before is not None:
            again = reader.read(posted, time.time_ns() // 1000)
            counters = moved(before.counters, again.counters)
            result.skipped = dict(before.skipped)
            result.counters = compare_counters(counters, queries, undelivered.postings, options.slack_us)
            result.unposted = queries.unposted(start_us, end_us)
            lost = {(each.counter.tenant, each.counter.line) for each in result.counters}
            gone = before.gone - lost
            if gone:
                result.missing.append(
                    f"the ledger has no counter any more of {len(gone):,} budgets that events of this day were posted"
                    " to: they are kept for a day after their window; reconcile a day soon after it is over"
                )
        if options.engine_side:
            scrapes += load_scrapes(connection, start_us, end_us)
            _engines(options, result, scrapes, queries, undelivered, say)
        if result.unexplained:
            result.suspects = queries.suspects(start_us, end_us)
    return result


@dataclass(frozen=True, slots=True)
class _LedgerSide:
    ledger: RedisLedger
    audit: LedgerAudit
    outbox: Outbox


@contextmanager
def _ledger_side(options: Options) -> Iterator[_LedgerSide]:
    assert options.ledger_url is not None
    url = options.ledger_url
    side = _LedgerSide(connect_ledger(url, timeout_s=LEDGER_TIMEOUT_S), connect_audit(url), connect_outbox(url))
    try:
        yield side
    finally:
        for each in (side.ledger, side.audit, side.outbox):
            each.close()


def _dead_letters(outbox: Outbox) -> Iterator[tuple[OutboxEntry, str, str]]:
    for letter in outbox.dead_letters():
        yield letter.entry, f"{DEAD} of {letter.sink}", letter.reason


def _scrape_now(options: Options, result: Result, say: Callable[[str], None]) -> list[Scrape]:
    if not options.engine_side or not options.engines:
        return []
    say(f"scraping {', '.join(options.engines)}")
    scraper = EngineScraper(*options.engines)
    found = scraper.scrape(time.time_ns() // 1000)
    result.missing += [f"engine {name}: {why}" for name, why in scraper.failures.items()]
    return found


def _engines(
    options: Options,
    result: Result,
    scrapes: Sequence[Scrape],
    queries: ReconcileQueries,
    undelivered: Undelivered,
    say: Callable[[str], None],
) -> None:
    start_us, end_us = options.period.start_ms * 1000, min(options.period.end_ms * 1000, result.now_us)
    names: dict[str, list[str]] = {}
    for name in (each.model for each in result.day):
        names.setdefault(options.aliases.get(name, name), []).append(name)
    for name in {each.model for each in scrapes}:
        if options.model in (None, name):
            names.setdefault(name, []).append(name)
    if not scrapes:
        result.missing.append(
            "no scrapes of an engine in the books: start the collector with --engine http://ENGINE:8000, or give"
            " --engine here to compare with its counters as they are now"
        )
        return
    for model, aliases in sorted(names.items()):
        say(f"comparing {model or 'events without a model'}")
        known = sorted({model, *aliases})
        tokens = sum(each.tokens.prompt + each.tokens.completion for each in result.day if each.model in known)
        lives = lives_of(each for each in scrapes if each.model == model)
        tokens_s = None if options.pace_given else queries.pace(known, start_us, end_us)
        pace = Pace(tokens_s, options.pace.notice_us) if tokens_s is not None else options.pace
        waiting = [each for each in undelivered.events if each.model in known]
        events = EventsInMemory(waiting, queries.of(known))
        report = EngineCheck(model, lives, events, pace, options.slack_us).report(start_us, end_us)
        if report is not None:
            result.engines.append(report)
            result.paces[model] = pace
            result.missing += _unseen(report, max(each.at_us for each in scrapes), end_us, result.now_us)
        elif tokens:
            result.missing.append(
                f"{model or 'events without a model'}: {tokens:,} tokens in the books, and no two scrapes of an engine"
                " that serves it under this name on this day: if it has another name there, say --alias NAME=MODEL"
            )


def _unseen(report: EngineReport, newest_us: int, end_us: int, now_us: int) -> Iterator[str]:
    compared = report.compared
    before = compared.unseen.get(Place.BEFORE)
    if before and before.events:
        yield (
            f"{compared.model}: {before.events:,} requests ran before the engine's first scrape and are not compared:"
            " keep the collector running with --engine"
        )
    after = compared.unseen.get(Place.AFTER)
    over = newest_us <= compared.span.to_us and (end_us < now_us or now_us - compared.span.to_us > STALE_US)
    if after and after.events and over:
        yield (
            f"{compared.model}: {after.events:,} requests ran after the engine's last scrape and are not compared:"
            " is the collector still running with --engine? Or give --engine here"
        )
