"""Do the books agree with the engines: a model's billed tokens against what its engines counted, to the token.

Compared is what lies between two scrapes of the engines' counters. A difference is explained by events, each for no
more than ``reconcile_events`` allows; what is left is looked for between the scrapes of the day.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from kong_plugins.application.reconcile_events import (
    NOTHING,
    BookedEvent,
    Explanation,
    Kind,
    Pace,
    Range,
    explain,
)
from kong_plugins.application.reconcile_scrapes import EngineSpan, Life, Place, Tokens, engine_span

NEAR = 8  # spans tried before halving
LEAKS_MAX = 5  # spans of a day that are named; whoever has more reads the first ones


@dataclass(frozen=True, slots=True)
class BookedSums:
    """Events that explain nothing and hide nothing, summed up."""

    events: int = 0
    tokens: Tokens = field(default_factory=Tokens)


NO_SUMS = BookedSums()


@dataclass(frozen=True, slots=True)
class BookedSpan:
    """A model's events of a span. ``plain``: whole answers with the engine's own figures, while the counters were seen.
    ``unseen``: those that began and ended while they were not, by place. ``remarkable``: every other one."""

    plain: BookedSums
    unseen: Mapping[Place, BookedSums]
    remarkable: Sequence[BookedEvent]


class BookedEvents(Protocol):
    """Where events are looked up: the books, and what is on its way to them."""

    def span(self, span: EngineSpan, slack_us: int) -> BookedSpan:
        """Events that ran, give or take ``slack_us``, at any time from the span's first scrape to its end."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One model, from one scrape to another. ``difference``: engine minus books. ``unexplained``: how far that is
    beyond all explanations."""

    model: str
    span: EngineSpan
    books: Tokens
    events: int
    unseen: Mapping[Place, BookedSums]
    explanations: tuple[Explanation, ...]

    @property
    def difference(self) -> Tokens:
        return self.span.tokens - self.books

    @property
    def explained(self) -> tuple[Range, Range]:
        """What the explanations allow together, of prompt and completion."""
        prompt, completion = NOTHING, NOTHING
        for each in self.explanations:
            prompt, completion = prompt + each.prompt, completion + each.completion
        return prompt, completion

    @property
    def unexplained(self) -> Tokens:
        prompt, completion = self.explained
        return Tokens(prompt.beyond(self.difference.prompt), completion.beyond(self.difference.completion))


@dataclass(frozen=True, slots=True)
class Leak:
    """Where an unexplained difference came about: between these two scrapes, and by how much there."""

    from_us: int
    to_us: int
    unexplained: Tokens


@dataclass(frozen=True, slots=True)
class EngineReport:
    """``leaks``: where the unexplained part is, none where there is none."""

    compared: Compared
    leaks: tuple[Leak, ...]


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """Compares one model's lives with its events. ``slack_us``: how far clocks of gateways and scraper may differ."""

    model: str
    lives: Sequence[Life]
    events: BookedEvents
    pace: Pace
    slack_us: int

    def report(self, start_us: int, end_us: int) -> EngineReport | None:
        """Of a day. None: no two scrapes tell anything of it."""
        compared = self.compare(start_us, end_us)
        if compared is None:
            return None
        return EngineReport(compared, self._leaks(compared) if compared.unexplained else ())

    def compare(self, start_us: int, end_us: int) -> Compared | None:
        span = engine_span(self.lives, start_us, end_us)
        if span is None:
            return None
        booked = self.events.span(span, self.slack_us)
        tokens, events, unseen = booked.plain.tokens, booked.plain.events, dict(booked.unseen)
        explanations: list[Explanation] = []
        for event in booked.remarkable:
            place = span.place(event.started_us - self.slack_us, event.ended_us + self.slack_us)
            count = int(event.kind != "reversal" and event.where == "books")
            if place not in {Place.INSIDE, Place.CROSSING}:
                known = unseen.get(place, NO_SUMS)
                unseen[place] = BookedSums(known.events + count, known.tokens + event.billed)
                continue
            tokens, events = tokens + event.billed, events + count
            explanations.extend(explain(event, self.pace, crossing=place is Place.CROSSING))
        return Compared(self.model, span, tokens, events, unseen, tuple(explanations))

    def _leaks(self, compared: Compared) -> tuple[Leak, ...]:
        """The first spans between scrapes that hold something unexplained.

        A span from the start that is explained grows scrape by scrape into one that is not: somewhere a step makes it
        so. The same from the other side finds how short the span can be. Both are found by halving."""
        times = sorted({scrape.at_us for life in self.lives for scrape in life.scrapes})
        low, high = bisect_right(times, compared.span.from_us), bisect_right(times, compared.span.to_us)
        start = min(compared.span.start_us, compared.span.from_us)
        marks = [start, *(at_us for at_us in times[low:high] if at_us > start)]
        leaks: list[Leak] = []
        while len(leaks) < LEAKS_MAX and self._left(marks[0], marks[-1]):
            first = marks[0]
            last = bisect_left(range(len(marks)), True, key=lambda n: bool(self._left(first, marks[n])))
            end = marks[last]
            begin = self._begin(marks[:last], end)
            leaks.append(Leak(max(marks[begin], compared.span.from_us), end, self._left(marks[begin], end)))
            if last == len(marks) - 1:
                break
            marks = marks[last:]
        return tuple(leaks)

    def _begin(self, marks: Sequence[int], end: int) -> int:
        """Mostly the step that made it so is all of it. Else halve: a shorter span may be explained by what crosses its
        beginning, and a still shorter one not."""
        for begin in range(len(marks) - 1, max(-1, len(marks) - 1 - NEAR), -1):
            if self._left(marks[begin], end):
                return begin
        return bisect_left(
            range(len(marks)), True, key=lambda n: n + 1 == len(marks) or not self._left(marks[n + 1], end)
        )

    def _left(self, start_us: int, end_us: int) -> Tokens:
        compared = self.compare(start_us, end_us) if start_us < end_us else None
        return compared.unexplained if compared else Tokens()


def named(explanations: Sequence[Explanation], kind: Kind) -> list[str]:
    """The event ids of a kind."""
    return [each.event_id for each in explanations if each.kind is kind]


class EventsInMemory:
    """``BookedEvents`` over records in memory, for what is not in the books yet, together with ``others``."""

    def __init__(self, events: Sequence[BookedEvent], others: BookedEvents | None = None) -> None:
        self._events = sorted(events, key=lambda event: event.started_us)
        self._others = others

    def span(self, span: EngineSpan, slack_us: int) -> BookedSpan:
        found = self._others.span(span, slack_us) if self._others else BookedSpan(NO_SUMS, {}, ())
        first, last = min(span.start_us, span.from_us), max(span.end_us, span.to_us)
        more = (
            event for event in self._events if event.ended_us + slack_us > first and event.started_us - slack_us < last
        )
        return BookedSpan(found.plain, found.unseen, tuple(chain(found.remarkable, more)))
