"""Windows partition time, whatever the calendar does."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.windows import (
    SLICES,
    FixedWindow,
    RollingWindow,
    TokenBucket,
    Unit,
    describe,
    window_at,
)

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # clocks change by half an hour
    "Asia/Kathmandu",  # 5:45
    "America/Havana",  # midnight comes twice
    "America/Asuncion",  # midnight is skipped
    "Africa/Cairo",
    "Pacific/Apia",  # a day was skipped
    "Antarctica/Troll",  # clocks change by two hours
]
HOUR_US = 3_600_000_000


def at(text: str, zone: str = "UTC") -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return int(moment.timestamp()) * 1_000_000


def local(at_us: int, zone: str) -> str:
    return datetime.fromtimestamp(at_us / 1e6, ZoneInfo(zone)).isoformat()


specs = st.one_of(
    st.builds(FixedWindow, st.sampled_from([Unit.SECOND, Unit.MINUTE, Unit.HOUR, Unit.DAY]), st.sampled_from(ZONES)),
    st.builds(FixedWindow, st.just(Unit.WEEK), st.sampled_from(ZONES), st.integers(1, 7)),
    st.builds(FixedWindow, st.just(Unit.MONTH), st.sampled_from(ZONES), st.integers(1, 31)),
)
moments = st.integers(at("2005-01-01T00:00:00"), at("2036-12-31T00:00:00"))


@given(specs, moments)
def test_windows_partition_time(spec: FixedWindow, now_us: int) -> None:
    """Every moment is in exactly one: the next starts where this one ends, and both ends agree on it."""
    span = window_at(spec, now_us)
    assert span.start_us <= now_us < span.end_us
    assert window_at(spec, span.start_us) == span
    assert window_at(spec, span.end_us - 1) == span
    assert window_at(spec, span.end_us).start_us == span.end_us
    assert window_at(spec, span.start_us - 1).end_us == span.start_us


@given(st.sampled_from(ZONES), st.integers(1, 31), moments)
def test_months_start_on_their_anchor_day(zone: str, anchor: int, now_us: int) -> None:
    """Or on the last day of a month that is too short; at the day's first moment."""
    start_us = window_at(FixedWindow(Unit.MONTH, zone, anchor), now_us).start_us
    start = datetime.fromtimestamp(start_us / 1e6, ZoneInfo(zone))
    after = datetime.fromtimestamp(start_us / 1e6 + 86_400 * 1.5, ZoneInfo(zone))
    assert start.day == anchor or (start.day < anchor and after.month != start.month)
    before = datetime.fromtimestamp(start_us / 1e6 - 1, ZoneInfo(zone))
    assert before.date() < start.date()


@pytest.mark.parametrize(
    ("spec", "now", "start", "end"),
    [
        (FixedWindow(Unit.SECOND), "2026-05-05T10:11:12", "2026-05-05T10:11:12", "2026-05-05T10:11:13"),
        (FixedWindow(Unit.MINUTE), "2026-05-05T10:11:12", "2026-05-05T10:11:00", "2026-05-05T10:12:00"),
        (FixedWindow(Unit.DAY), "2026-05-05T10:11:12", "2026-05-05T00:00:00", "2026-05-06T00:00:00"),
        (FixedWindow(Unit.WEEK), "2026-05-05T10:11:12", "2026-05-04T00:00:00", "2026-05-11T00:00:00"),
        (FixedWindow(Unit.WEEK, "UTC", 7), "2026-05-05T10:11:12", "2026-05-03T00:00:00", "2026-05-10T00:00:00"),
        (FixedWindow(Unit.MONTH), "2026-02-05T10:11:12", "2026-02-01T00:00:00", "2026-03-01T00:00:00"),
        (FixedWindow(Unit.MONTH, "UTC", 31), "2026-02-27T10:00:00", "2026-01-31T00:00:00", "2026-02-28T00:00:00"),
        (FixedWindow(Unit.MONTH, "UTC", 30), "2028-02-29T10:00:00", "2028-02-29T00:00:00", "2028-03-30T00:00:00"),
        (FixedWindow(Unit.MONTH, "UTC", 31), "2026-12-31T00:00:00", "2026-12-31T00:00:00", "2027-01-31T00:00:00"),
    ],
)
def test_fixed_windows_by_example(spec: FixedWindow, now: str, start: str, end: str) -> None:
    span = window_at(spec, at(now))
    assert (span.start_us, span.end_us) == (at(start), at(end))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-07-01", 24)])
def test_a_day_is_as_long_as_its_clocks_make_it(day: str, hours: int) -> None:
    span = window_at(FixedWindow(Unit.DAY, "Europe/Berlin"), at(f"{day}T12:00:00", "Europe/Berlin"))
    assert span.end_us - span.start_us == hours * HOUR_US
    assert local(span.start_us, "Europe/Berlin").startswith(f"{day}T00:00:00")


def test_an_hour_that_comes_twice_is_two_windows() -> None:
    """02:30 before and after the clocks go back are an hour apart."""
    spec = FixedWindow(Unit.HOUR, "Europe/Berlin")
    first = window_at(spec, at("2026-10-25T00:30:00"))
    second = window_at(spec, at("2026-10-25T01:30:00"))
    assert first.end_us == second.start_us
    assert local(first.start_us, "Europe/Berlin")[:13] == local(second.start_us, "Europe/Berlin")[:13]


def test_a_half_hour_change_cuts_its_hour() -> None:
    """On Lord Howe Island 02:00 becomes 01:30: the hour from 01:00 ends there, half an hour follows."""
    spec = FixedWindow(Unit.HOUR, "Australia/Lord_Howe")
    change = at("2026-04-04T15:00:00")
    assert window_at(spec, change - 1).end_us == change
    half = window_at(spec, change)
    assert (half.start_us, half.end_us - half.start_us) == (change, HOUR_US // 2)


@pytest.mark.parametrize(
    ("zone", "now", "start", "end"),
    [
        # 23:30 became 00:30: what is left of the next day's first hour still belongs to the day before.
        ("America/Toronto", "1919-03-31T04:35:00", "1919-03-30T05:00:00", "1919-03-31T05:00:00"),
        # 00:01 became 23:01: the day had begun, and does not begin twice.
        ("America/Goose_Bay", "2010-11-07T03:30:00", "2010-11-07T03:00:00", "2010-11-08T04:00:00"),
        ("America/Goose_Bay", "2010-11-07T02:59:00", "2010-11-06T03:00:00", "2010-11-07T03:00:00"),
    ],
)
def test_days_partition_time_where_clocks_change_around_midnight(zone: str, now: str, start: str, end: str) -> None:
    span = window_at(FixedWindow(Unit.DAY, zone), at(now))
    assert (span.start_us, span.end_us) == (at(start), at(end))


@pytest.mark.parametrize("length_s", [1, 7, 59, 60, 3600, 2_678_400])
def test_slices_cover_the_length_of_a_rolling_window(length_s: int) -> None:
    """So that an amount, counted for the slice it is in and all following ones, never leaves early."""
    slice_us = RollingWindow(length_s).slice_us
    assert slice_us * SLICES >= length_s * 1_000_000
    assert (slice_us - 1) * SLICES < length_s * 1_000_000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedWindow(Unit.DAY, "Mars/Olympus"), "IANA"),
        (lambda: FixedWindow(Unit.DAY, "../etc/passwd"), "IANA"),
        (lambda: FixedWindow(Unit.DAY, "UTC", 2), "anchor day"),
        (lambda: FixedWindow(Unit.WEEK, "UTC", 8), "1 to 7"),
        (lambda: FixedWindow(Unit.MONTH, "UTC", 0), "1 to 31"),
        (lambda: RollingWindow(0), "31 days"),
        (lambda: TokenBucket(2_678_401), "31 days"),
    ],
)
def test_windows_that_cannot_be_are_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_windows_are_described_by_everything_that_makes_them() -> None:
    assert describe(FixedWindow(Unit.MONTH, "Europe/Berlin", 15)) == "fixed month Europe/Berlin 15"
    assert describe(RollingWindow(3600)) == "rolling 3600"
    assert describe(TokenBucket(60)) == "bucket 60"
