"""Windows: the spans of time a budget counts over. Half-open: a window's end is the next one's start."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """A window on the calendar of ``time_zone`` (IANA name). ``anchor_day`` is the billing day a month starts on
    (1-31; a shorter month starts on its last day), or the ISO weekday (1-7) a week starts on."""

    unit: Unit
    time_zone: str = "UTC"
    anchor_day: int = 1


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """The last ``length_s`` seconds at any moment. Counted in slices, an amount leaves at most one slice late: never early."""

    length_s: int


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Refills evenly by the budget's limit every ``refill_s`` seconds, up to the limit."""

    refill_s: int


WindowSpec = FixedWindow | RollingWindow | TokenBucket
