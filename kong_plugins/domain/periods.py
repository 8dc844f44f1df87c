"""Periods of a report: a day or a month on the calendar of a time zone, half-open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Period:
    """``start_ms`` is in it, ``end_ms`` is not. ``label``: ``2026-11-22`` or ``2026-11``. ``time_zone``: IANA name.
    ``marks``: starts of its hours (a day) or days (a month), beginning with its own."""

    label: str
    time_zone: str
    start_ms: int
    end_ms: int
    marks: tuple[int, ...]

    @property
    def monthly(self) -> bool:
        return len(self.label) == len("2026-11")


def zone(name: str) -> ZoneInfo:
    """
    Raises:
        ValueError: the time zone is not known here.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:  # what zoneinfo raises depends on how the name is wrong
        raise ValueError(f"unknown time zone {name!r}: use an IANA name such as Europe/Berlin") from error


def midnight_ms(time_zone: ZoneInfo, day: date) -> int:
    """Epoch milliseconds of a local day's start; a midnight that clocks jump over is where it would have been."""
    return (datetime(day.year, day.month, day.day, tzinfo=time_zone) - _EPOCH) // _MS


def day_period(day: date, time_zone: str) -> Period:
    """A day of 23, 24 or 25 hours.

    Raises:
        ValueError: the time zone is not known here, or the zone skipped the day.
    """
    where = zone(time_zone)
    start_ms, end_ms = midnight_ms(where, day), midnight_ms(where, day + timedelta(days=1))
    if start_ms >= end_ms:
        raise ValueError(f"there was no {day} in {time_zone}")
    return Period(day.isoformat(), time_zone, start_ms, end_ms, tuple(range(start_ms, end_ms, HOUR_MS)))


def month_period(year: int, month: int, time_zone: str) -> Period:
    """
    Raises:
        ValueError: the time zone is not known here, or there is no such month.
    """
    where = zone(time_zone)
    first = date(year, month, 1)
    after = (first + timedelta(days=31)).replace(day=1)
    days = [first + timedelta(days=n) for n in range((after - first).days)]
    marks = sorted({midnight_ms(where, day) for day in days})
    return Period(f"{first:%Y-%m}", time_zone, marks[0], midnight_ms(where, after), tuple(marks))


def parse_period(text: str, time_zone: str, now: datetime, *, monthly: bool) -> Period:
    """Of what a person writes: ``2026-11-22``, ``today``, ``yesterday``; of a month ``2026-11``, ``this``, ``last``.

    Raises:
        ValueError: none of these, or the time zone is not known here.
    """
    today = now.astimezone(zone(time_zone)).date()
    words: dict[str, Callable[[], date]] = (
        {"this": lambda: today, "last": lambda: today.replace(day=1) - timedelta(days=1)}
        if monthly
        else {"today": lambda: today, "yesterday": lambda: today - timedelta(days=1)}
    )
    day = words[text]() if text in words else _written(text, "%Y-%m" if monthly else "%Y-%m-%d", words)
    return month_period(day.year, day.month, time_zone) if monthly else day_period(day, time_zone)


def _written(text: str, shape: str, words: dict[str, Callable[[], date]]) -> date:
    try:
        return datetime.strptime(text, shape).replace(tzinfo=UTC).date()
    except ValueError:
        example = "2026-11" if shape == "%Y-%m" else "2026-11-22"
        raise ValueError(f"{text!r} is neither like {example} nor one of {', '.join(words)}") from None


def iso_utc(time_ms: int) -> str:
    """``2026-11-22T23:00:00Z``; milliseconds only where there are any."""
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{time_ms % 1000:03}Z" if time_ms % 1000 else "Z")
