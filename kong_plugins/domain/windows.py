"""Windows: the spans of time a budget counts over. Half-open: a window's end is the next one's start."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

SECOND_US = 1_000_000
LENGTH_S_MAX = 31 * 86_400  # A month. Its microseconds stay below 2^42, which the ledger's exact arithmetic builds on.

# A rolling window is counted in 60 slices: an amount stays at most a sixtieth (1.7 %) longer than the window, and a
# counter is one small hash of at most 61 slices, which Redis keeps in its compact encoding.
SLICES = 60

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Unit(StrEnum):
    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_LENGTH_US = {Unit.SECOND: SECOND_US, Unit.MINUTE: 60 * SECOND_US, Unit.HOUR: 3600 * SECOND_US}
_ANCHOR_MAX = {Unit.WEEK: 7, Unit.MONTH: 31}


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """A window on the calendar of ``time_zone`` (IANA name). ``anchor_day`` is the billing day a month starts on
    (1-31; a shorter month starts on its last day), or the ISO weekday (1-7) a week starts on.

    Raises:
        ValueError: the time zone is not known here, or the unit has no such anchor day.
    """

    unit: Unit
    time_zone: str = "UTC"
    anchor_day: int = 1

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.time_zone)
        except (OSError, ValueError, LookupError) as error:  # what zoneinfo raises depends on how the name is wrong
            raise ValueError(
                f"unknown time zone {self.time_zone!r}: use an IANA name such as Europe/Berlin"
                " (a system without zone data needs the tzdata package)"
            ) from error
        last = _ANCHOR_MAX.get(self.unit, 1)
        if not 1 <= self.anchor_day <= last:
            raise ValueError(f"a {self.unit} window takes an anchor day of 1 to {last}, not {self.anchor_day}")


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """The last ``length_s`` seconds at any moment. Counted in slices: an amount leaves at most one slice late, never
    early, so that no span of this length ever holds more than the limit.

    Raises:
        ValueError: not between a second and 31 days.
    """

    length_s: int

    def __post_init__(self) -> None:
        _check_length(self.length_s)

    @property
    def slice_us(self) -> int:
        """Width of a slice; ``SLICES`` of them cover the length."""
        return -(-self.length_s * SECOND_US // SLICES)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Refills evenly by the budget's limit every ``refill_s`` seconds, up to the limit.

    Raises:
        ValueError: not between a second and 31 days.
    """

    refill_s: int

    def __post_init__(self) -> None:
        _check_length(self.refill_s)

    @property
    def refill_us(self) -> int:
        return self.refill_s * SECOND_US


WindowSpec = FixedWindow | RollingWindow | TokenBucket


@dataclass(frozen=True, slots=True)
class Span:
    """``start_us`` is in it, ``end_us`` is not."""

    start_us: int
    end_us: int

    def __contains__(self, at_us: int) -> bool:
        return self.start_us <= at_us < self.end_us


def describe(spec: WindowSpec) -> str:
    """A window in words that name it uniquely: ``fixed day Europe/Berlin 1``, ``rolling 3600``, ``bucket 60``."""
    match spec:
        case FixedWindow():
            return f"fixed {spec.unit} {spec.time_zone} {spec.anchor_day}"
        case RollingWindow():
            return f"rolling {spec.length_s}"
        case TokenBucket():
            return f"bucket {spec.refill_s}"


def parse_description(text: str) -> WindowSpec:
    """The window that :func:`describe` gave these words.

    Raises:
        ValueError: not such words.
    """
    match text.split(" "):
        case ["fixed", unit, time_zone, anchor_day]:
            return FixedWindow(Unit(unit), time_zone, int(anchor_day))
        case ["rolling", length_s]:
            return RollingWindow(int(length_s))
        case ["bucket", refill_s]:
            return TokenBucket(int(refill_s))
    raise ValueError(f"not a window's description: {text!r}")


def window_at(spec: FixedWindow, at_us: int) -> Span:
    """The calendar window that ``at_us`` lies in. A day has 23 or 25 hours where the clocks change."""
    zone = ZoneInfo(spec.time_zone)
    length_us = _LENGTH_US.get(spec.unit)
    if length_us is not None:
        return _clock_window(zone, length_us, at_us)
    day = _local(zone, at_us).date()
    start_day = _start_day(spec, day)
    # A zone may skip a midnight, or a whole day: then the local date alone does not tell which side of it we are on.
    while _midnight_us(zone, start_day) > at_us:
        start_day = _start_day(spec, start_day - timedelta(days=1))
    next_day = _next_start_day(spec, start_day)
    while (end_us := _midnight_us(zone, next_day)) <= at_us:
        start_day, next_day = next_day, _next_start_day(spec, next_day)
    return Span(_midnight_us(zone, start_day), end_us)


def _check_length(length_s: int) -> None:
    if not 1 <= length_s <= LENGTH_S_MAX:
        raise ValueError(f"a window is 1 to {LENGTH_S_MAX} seconds (31 days) long, not {length_s}")


def _local(zone: ZoneInfo, at_us: int) -> datetime:
    return (_EPOCH + timedelta(microseconds=at_us)).astimezone(zone)


def _offset_us(zone: ZoneInfo, at_us: int) -> int:
    offset = _local(zone, at_us).utcoffset()
    assert offset is not None  # a ZoneInfo always knows
    return offset // _US


def _clock_window(zone: ZoneInfo, length_us: int, at_us: int) -> Span:
    """Seconds, minutes and hours of the local clock; cut where the offset changes within one (by half hours, say)."""
    offset_us = _offset_us(zone, at_us)
    start_us = at_us - (at_us + offset_us) % length_us
    end_us = start_us + length_us
    if _offset_us(zone, start_us) != offset_us:
        start_us = _change_us(zone, start_us, at_us, offset_us)
    if _offset_us(zone, end_us - 1) != offset_us:
        end_us = _change_us(zone, at_us, end_us - 1, _offset_us(zone, end_us - 1))
    return Span(start_us, end_us)


def _change_us(zone: ZoneInfo, before_us: int, after_us: int, offset_us: int) -> int:
    """The first second in (before, after] from which the zone's offset is ``offset_us``."""
    seconds = range(before_us // SECOND_US, after_us // SECOND_US + 1)
    return seconds[bisect_left(seconds, True, key=lambda s: _offset_us(zone, s * SECOND_US) == offset_us)] * SECOND_US


def _midnight_us(zone: ZoneInfo, day: date) -> int:
    """Start of a local day: the first of two midnights; one that clocks jump over is where it would have been."""
    return (datetime(day.year, day.month, day.day, tzinfo=zone) - _EPOCH) // _US


def _start_day(spec: FixedWindow, day: date) -> date:
    if spec.unit is Unit.WEEK:
        return day - timedelta(days=(day.isoweekday() - spec.anchor_day) % 7)
    if spec.unit is Unit.MONTH:
        start = _month_start(spec, day.year, day.month)
        if start <= day:
            return start
        before = day.replace(day=1) - timedelta(days=1)
        return _month_start(spec, before.year, before.month)
    return day


def _next_start_day(spec: FixedWindow, start: date) -> date:
    if spec.unit is Unit.WEEK:
        return start + timedelta(days=7)
    if spec.unit is Unit.MONTH:
        after = start.replace(day=1) + timedelta(days=32)
        return _month_start(spec, after.year, after.month)
    return start + timedelta(days=1)


def _month_start(spec: FixedWindow, year: int, month: int) -> date:
    return date(year, month, min(spec.anchor_day, monthrange(year, month)[1]))
