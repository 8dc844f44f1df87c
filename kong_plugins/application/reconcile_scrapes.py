"""What an engine's counters say of a span of time, when all there is of them are scrapes, and the engine restarts.

Nothing is interpolated: the tokens of a span are the difference of two scrapes, and of what the counters cannot tell it
is said when it happened. An engine's counters live as long as its process: a *life* begins at zero when the process
does, and ends with its last scrape or a little later, unseen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from operator import attrgetter

ALWAYS = 2**62  # microseconds; beyond any time there is, either way
Interval = tuple[int, int]  # microseconds, open at both ends


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair of counts, or of differences."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    def __bool__(self) -> bool:
        return bool(self.prompt or self.completion)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One engine's counters of one model at one time, one for each data-parallel rank.

    ``life`` is the same for two scrapes of the same counters and for no others, as far as the page tells: it has the
    time when they began (``born_us``). A page that does not say leaves lives to be told apart by counters that fall.
    ``finished``: requests that ran to their end, by reason. ``running``: requests in the engine at that moment.
    """

    engine: str
    model: str
    rank: str
    life: str
    at_us: int
    born_us: int | None
    prompt: int
    completion: int
    cached: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    running: int = 0

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class Observed:
    """What one life counted in a span: from the scrape before it (or its birth) to the last one in it.

    ``unsure``: when it may have counted something that is not in ``tokens``; ``dead``: when it cannot have counted at
    all.
    """

    tokens: Tokens
    cached: int
    finished: int
    from_us: int
    to_us: int
    unsure: tuple[Interval, ...]
    dead: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Life:
    """``scrapes`` by time, at least one. ``born_us``: when it began counting from zero, not before; None: not known.
    ``died_us``: when it was certainly over, None: not known to be."""

    scrapes: tuple[Scrape, ...]
    born_us: int | None
    died_us: int | None

    def observed(self, start_us: int, end_us: int) -> Observed | None:
        """None: it did not live in this span."""
        alive = (self.born_us if self.born_us is not None else -ALWAYS, self.died_us or ALWAYS)
        if alive[1] <= start_us or alive[0] >= end_us:
            return None
        dead = tuple(each for each in ((-ALWAYS, alive[0]), (alive[1], ALWAYS)) if each[0] < each[1])
        first, last = self._until(start_us), self._until(end_us)
        if last is None:  # it was there, and nobody looked
            return Observed(Tokens(), 0, 0, end_us, start_us, (alive,), dead)
        unsure: list[Interval] = []
        if first is None and self.born_us is not None and self.born_us >= start_us:
            from_us, before, cached, finished = self.born_us, Tokens(), 0, 0
        else:
            base = first or self.scrapes[0]
            from_us, before, cached, finished = base.at_us, base.tokens, base.cached, sum(base.finished.values())
            unsure.append((alive[0], from_us))
        unsure.append((last.at_us, alive[1]))
        return Observed(
            tokens=last.tokens - before,
            cached=last.cached - cached,
            finished=sum(last.finished.values()) - finished,
            from_us=from_us,
            to_us=last.at_us,
            unsure=tuple(unsure),
            dead=dead,
        )

    def _until(self, at_us: int) -> Scrape | None:
        index = bisect_right(self.scrapes, at_us, key=attrgetter("at_us"))
        return self.scrapes[index - 1] if index else None


def lives_of(scrapes: Iterable[Scrape]) -> tuple[Life, ...]:
    """The lives of one model's counters, on all engines and ranks."""
    every = sorted(scrapes, key=attrgetter("at_us"))
    grouped: defaultdict[str, list[Scrape]] = defaultdict(list)
    for scrape in every:
        grouped[scrape.life].append(scrape)
    pieces = [piece for group in grouped.values() for piece in _cut_where_counters_fall(group)]
    return tuple(Life(piece, born_us, _death(piece[-1], every)) for piece, born_us in pieces)


def _cut_where_counters_fall(group: Sequence[Scrape]) -> Iterable[tuple[tuple[Scrape, ...], int | None]]:
    """Counters only rise; lower ones began anew at some time since the scrape before."""
    piece, born_us = [group[0]], group[0].born_us
    for before, scrape in pairwise(group):
        if scrape.prompt < before.prompt or scrape.completion < before.completion:
            yield tuple(piece), born_us
            piece, born_us = [], before.at_us
        if not piece or scrape.at_us > piece[-1].at_us:
            piece.append(scrape)
    yield tuple(piece), born_us


def _death(last: Scrape, every: Sequence[Scrape]) -> int | None:
    """An engine that is not scraped when others are is gone; where another life took its place, that one's birth tells
    it more closely."""
    later = every[bisect_right(every, last.at_us, key=attrgetter("at_us")) :]
    if not later:
        return None
    heirs = (each for each in later if (each.engine, each.rank) == (last.engine, last.rank))
    heir = next(heirs, None)
    born_us = heir.born_us if heir is not None and heir.born_us is not None else ALWAYS
    return max(last.at_us + 1, min(later[0].at_us, born_us))


class Place(StrEnum):
    """Where a request stands to what was seen of the engines' counters. The last three are not compared at all."""

    INSIDE = "inside"  # counted, all of it
    CROSSING = "crossing"  # nobody knows how much of it was counted
    BEFORE = "before"  # the first scrape
    BETWEEN = "between"  # an engine's last scrape and its end
    AFTER = "after"  # the last scrape


@dataclass(frozen=True, slots=True)
class EngineSpan:
    """All of a model's lives together. ``unsure``: as in ``Observed``, of any life. ``hidden``: when no life's counting
    is seen: what lies wholly within is not compared at all."""

    start_us: int
    end_us: int
    from_us: int
    to_us: int
    tokens: Tokens
    cached: int
    finished: int
    unsure: tuple[Interval, ...]
    hidden: tuple[Interval, ...]

    def place(self, from_us: int, to_us: int) -> Place:
        """Where a request that ran from one time to another stands."""
        if not any(low < to_us and from_us < high for low, high in self.unsure):
            return Place.INSIDE
        if not any(low <= from_us and to_us <= high for low, high in self.hidden):
            return Place.CROSSING
        return Place.BEFORE if to_us <= self.from_us else Place.AFTER if from_us >= self.to_us else Place.BETWEEN


def engine_span(lives: Iterable[Life], start_us: int, end_us: int) -> EngineSpan | None:
    """What the engines counted from the scrapes at the start to those at the end. None: there is nothing to tell by."""
    seen = [each for life in lives if (each := life.observed(start_us, end_us)) is not None]
    told = [each for each in seen if each.from_us < each.to_us]
    if not told:
        return None
    total = Tokens()
    for each in told:
        total += each.tokens
    hidden: tuple[Interval, ...] = ((-ALWAYS, ALWAYS),)
    for each in seen:
        hidden = _both(hidden, merged((*each.unsure, *each.dead)))
    return EngineSpan(
        start_us=start_us,
        end_us=end_us,
        from_us=min(each.from_us for each in told),
        to_us=max(each.to_us for each in told),
        tokens=total,
        cached=sum(each.cached for each in told),
        finished=sum(each.finished for each in told),
        unsure=merged(interval for each in seen for interval in each.unsure),
        hidden=hidden,
    )


def merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """By time, those that touch made one."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _both(some: Sequence[Interval], others: Sequence[Interval]) -> tuple[Interval, ...]:
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in some for b in others)
    return tuple(sorted(each for each in pairs if each[0] < each[1]))
