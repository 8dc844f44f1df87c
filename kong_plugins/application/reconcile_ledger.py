"""Do the books agree with the ledger: what events say was posted, against the counters it was posted to.

Both were written in one atomic step, so they agree to the unit, whatever became of a request. A counter is compared
over its own window, by when requests were held: what is posted late stays in the window of its hold.
"""

from __future__ import annotations

from collections import Counter as Sums
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from kong_plugins.application.ports import Balance, Ledger
from kong_plugins.application.reconcile_events import NOTHING, Range, exactly
from kong_plugins.domain.windows import FixedWindow, Unit, describe, parse_description, window_at

Line = tuple[str, str]  # tenant and line key
COMPARABLE = (Unit.HOUR, Unit.DAY, Unit.WEEK, Unit.MONTH)
GRANTS_KEPT = 1000  # as many as the ledger keeps for a tenant


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter of a fixed window as read twice, before and after the events: ``least`` and ``most`` are what it had
    committed. ``granted``: by grants and resets in its window. All in the budget's unit."""

    tenant: str
    line: str
    window: str
    start_us: int
    end_us: int
    least: int
    most: int
    held: int = 0
    granted: int = 0
    mode: str = "hard"
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Posting:
    """What one event says it posted to one counter."""

    tenant: str
    line: str
    event_id: str
    amount: int
    started_us: int


@dataclass(frozen=True, slots=True)
class Postings:
    """``sums`` of those that lie within a window, and each one ``near`` its edges."""

    sums: Mapping[Line, int]
    near: Sequence[Posting]


class PostedEvents(Protocol):
    """Where postings are looked up: the books."""

    def postings(self, start_us: int, end_us: int, slack_us: int) -> Postings:
        """Of events whose request started in this window, ``near`` where that is within ``slack_us`` of an edge."""


class Why(StrEnum):
    """Why a counter and the books differ."""

    UNDELIVERED = "undelivered"
    EDGE = "edge"


@dataclass(frozen=True, slots=True)
class PostingExplained:
    why: Why
    event_id: str
    amount: Range


@dataclass(frozen=True, slots=True)
class CounterCompared:
    """``booked``: what the events in the books posted to it."""

    counter: Counter
    booked: int
    explanations: tuple[PostingExplained, ...]

    @property
    def posted(self) -> Range:
        """What requests posted to it, by the counter."""
        return Range(self.counter.least + self.counter.granted, self.counter.most + self.counter.granted)

    @property
    def difference(self) -> int:
        """Ledger minus books, at the counter's second reading."""
        return self.posted.high - self.booked

    @property
    def unexplained(self) -> int:
        allowed = NOTHING
        for each in self.explanations:
            allowed += each.amount
        spread = self.counter.most - self.counter.least
        return Range(allowed.low, allowed.high + spread).beyond(self.difference)


def compare_counters(
    counters: Iterable[Counter], events: PostedEvents, undelivered: Sequence[Posting], slack_us: int
) -> list[CounterCompared]:
    """Each counter with the postings of its window; also what events posted in such a window without a counter."""
    windows: defaultdict[tuple[str, int, int], list[Counter]] = defaultdict(list)
    for counter in counters:
        windows[counter.window, counter.start_us, counter.end_us].append(counter)
    names = _windows_by_name(windows)
    found = []
    for (window, start_us, end_us), members in windows.items():
        booked = events.postings(start_us, end_us, slack_us)
        lines = {(each.tenant, each.line): each for each in members}
        for line in booked.sums.keys() - lines.keys():
            if names.get(_name(line[1])) == {(window, start_us, end_us)}:
                lines[line] = Counter(*line, window, start_us, end_us, 0, 0)
        near = _by_line(booked.near)
        late = _by_line(each for each in undelivered if start_us - slack_us <= each.started_us < end_us + slack_us)
        found += [
            _compared(counter, booked.sums.get(line, 0), near.get(line, ()), late.get(line, ()), slack_us)
            for line, counter in lines.items()
        ]
    return sorted(found, key=lambda each: (each.counter.tenant, each.counter.line, each.counter.window))


def _compared(
    counter: Counter, booked: int, near: Sequence[Posting], late: Sequence[Posting], slack_us: int
) -> CounterCompared:
    explanations = []
    for posting in near:
        # Counted as within or not by its start; its hold may lie on the other side.
        inside = counter.start_us <= posting.started_us < counter.end_us
        booked += posting.amount if inside else 0
        other = -posting.amount if inside else posting.amount
        edge = Range(min(0, other), max(0, other))
        explanations.append(PostingExplained(Why.EDGE, posting.event_id, edge))
    for posting in late:
        near_edge = min(abs(posting.started_us - counter.start_us), abs(posting.started_us - counter.end_us)) < slack_us
        amount = Range(min(0, posting.amount), max(0, posting.amount)) if near_edge else exactly(posting.amount)
        explanations.append(PostingExplained(Why.UNDELIVERED, posting.event_id, amount))
    return CounterCompared(counter, booked, tuple(explanations))


def _by_line(postings: Iterable[Posting]) -> dict[Line, list[Posting]]:
    found: defaultdict[Line, list[Posting]] = defaultdict(list)
    for posting in postings:
        found[posting.tenant, posting.line].append(posting)
    return found


def _name(line: str) -> str:
    """The budget's name, without the values it is scoped by."""
    return line.partition("|")[0]


def _windows_by_name(
    windows: Mapping[tuple[str, int, int], Sequence[Counter]],
) -> dict[str, set[tuple[str, int, int]]]:
    found: defaultdict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for window, members in windows.items():
        for counter in members:
            found[_name(counter.line)].add(window)
    return found


class EndedCounters(Protocol):
    """Counters by name, also of windows that are over."""

    def committed(self, counters: Sequence[tuple[str, str, FixedWindow, int]]) -> list[int | None]:
        """By tenant, line key, window and its start; None: there is none any more."""


@dataclass(frozen=True, slots=True)
class Read:
    """One reading of the ledger's counters. ``skipped``: why some of them cannot be compared, with how many.
    ``gone``: what events of the day were posted to, and the ledger has no counter of any more."""

    counters: tuple[Counter, ...]
    skipped: Mapping[str, int]
    gone: frozenset[Line] = frozenset()


@dataclass(frozen=True, slots=True)
class CounterReader:
    """Reads the counters whose windows have to do with a day. ``time_zone``: the day's own, in which a budget's days
    are looked for where nothing tells of its window any more."""

    ledger: Ledger
    ended: EndedCounters
    start_us: int
    end_us: int
    time_zone: str

    def read(self, posted: Iterable[Line], now_us: int) -> Read:
        """``posted``: lines that events of the day were posted to."""
        balances = [each for tenant in self.ledger.tenants() for each in self.ledger.balances(tenant)]
        skipped: Sums[str] = Sums()
        moving: set[str] = set()
        posted = list(posted)
        wanted: dict[tuple[str, str, FixedWindow], Balance | None] = {}
        names: defaultdict[str, set[FixedWindow]] = defaultdict(set)
        for balance in balances:
            window = parse_description(balance.window)
            if not isinstance(window, FixedWindow) or window.unit not in COMPARABLE:
                skipped[f"{balance.window}: its window moves on, so no day's events add up to it"] += 1
                moving.add(_name(balance.state.key))
                continue
            wanted[balance.tenant, balance.state.key, window] = balance
            names[_name(balance.state.key)].add(window)
        known = {(tenant, line) for tenant, line, _ in wanted}
        for tenant, line in posted:
            if (tenant, line) not in known:
                for window in names.get(_name(line)) or self._likely():
                    wanted[tenant, line, window] = None
        grants = {tenant: self.ledger.grants(tenant, GRANTS_KEPT) for tenant in {each[0] for each in wanted}}
        found: list[Counter] = []
        for (tenant, line, window), shown in wanted.items():
            for start_us, end_us, committed in self._windows(tenant, line, window, shown, now_us):
                if committed is None:
                    continue
                given = sum(
                    each.amount for each in grants[tenant] if each.line == line and start_us <= each.at_us < end_us
                )
                live = shown if start_us <= now_us < end_us else None
                found.append(
                    Counter(
                        tenant=tenant,
                        line=line,
                        window=describe(window),
                        start_us=start_us,
                        end_us=end_us,
                        least=committed,
                        most=committed,
                        held=live.state.held if live else 0,
                        granted=given,
                        mode=live.mode if live else "",
                        limit=live.state.limit if live else 0,
                    )
                )
        read = {(each.tenant, each.line) for each in found}
        gone = frozenset(each for each in posted if each not in read and _name(each[1]) not in moving)
        return Read(tuple(found), skipped, gone)

    def _likely(self) -> tuple[FixedWindow, ...]:
        return tuple(dict.fromkeys((FixedWindow(Unit.DAY, self.time_zone), FixedWindow(Unit.DAY))))

    def _windows(
        self, tenant: str, line: str, window: FixedWindow, balance: Balance | None, now_us: int
    ) -> Iterable[tuple[int, int, int | None]]:
        """Those that overlap the day and have begun: start, end, committed."""
        span = window_at(window, self.start_us)
        over: list[tuple[int, int]] = []
        while span.start_us < self.end_us and span.start_us <= now_us:
            if balance is not None and span.end_us == balance.state.reset_us:
                yield span.start_us, span.end_us, balance.state.committed
            else:
                over.append((span.start_us, span.end_us))
            span = window_at(window, span.end_us)
        values = self.ended.committed([(tenant, line, window, start_us) for start_us, _ in over])
        for (start_us, end_us), committed in zip(over, values, strict=True):
            yield start_us, end_us, committed


def moved(before: Sequence[Counter], after: Sequence[Counter]) -> list[Counter]:
    """The counters of the second reading, each with the range that it moved through since the first."""
    first = {(each.tenant, each.line, each.window, each.start_us): each for each in before}
    found = []
    for each in after:
        was = first.get((each.tenant, each.line, each.window, each.start_us))
        least = min(each.most + each.granted, was.most + was.granted if was else 0) - each.granted
        most = max(each.most + each.granted, was.most + was.granted if was else 0) - each.granted
        found.append(replace(each, least=least, most=most))
    return found
