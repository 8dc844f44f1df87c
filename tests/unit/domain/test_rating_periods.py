"""Days and months begin and end on their own calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from kong_plugins.domain.periods import HOUR_MS, day_period, iso_utc, month_period, parse_period

BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("day", "hours", "start"),
    [
        ("2026-03-29", 23, "2026-03-28T23:00:00Z"),
        ("2026-10-25", 25, "2026-10-24T22:00:00Z"),
        ("2026-11-22", 24, "2026-11-21T23:00:00Z"),
    ],
)
def test_a_day_has_the_hours_that_its_clock_had(day: str, hours: int, start: str) -> None:
    """23 in spring, 25 in autumn, and one mark for each."""
    period = day_period(date.fromisoformat(day), BERLIN)
    assert iso_utc(period.start_ms) == start
    assert period.end_ms - period.start_ms == hours * HOUR_MS
    assert len(period.marks) == hours


def test_a_months_days_follow_one_another() -> None:
    """October 2026 in Berlin: 31 days, 745 hours, November begins where it ends."""
    october = month_period(2026, 10, BERLIN)
    assert october.end_ms - october.start_ms == 745 * HOUR_MS
    assert october.marks == tuple(day_period(date(2026, 10, n), BERLIN).start_ms for n in range(1, 32))
    assert month_period(2026, 11, BERLIN).start_ms == october.end_ms


def test_december_ends_with_the_year() -> None:
    """The month after it is in the next year."""
    assert iso_utc(month_period(2026, 12, "UTC").end_ms) == "2027-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "monthly", "label"),
    [
        ("today", False, "2026-03-01"),
        ("yesterday", False, "2026-02-28"),
        ("2026-11-22", False, "2026-11-22"),
        ("this", True, "2026-03"),
        ("last", True, "2026-02"),
        ("2026-11", True, "2026-11"),
    ],
)
def test_words_are_of_the_zones_own_day(text: str, monthly: bool, label: str) -> None:
    """Half past eleven at night in UTC is tomorrow in Berlin."""
    now = datetime(2026, 2, 28, 23, 30, tzinfo=UTC)
    assert parse_period(text, BERLIN, now, monthly=monthly).label == label


@pytest.mark.parametrize(("text", "zone"), [("tomorrow", "UTC"), ("2026-02-30", "UTC"), ("today", "Europe/Nowhere")])
def test_what_is_no_period_is_said(text: str, zone: str) -> None:
    """With an example of one, or of a zone."""
    with pytest.raises(ValueError, match=r"2026-11-22|IANA"):
        parse_period(text, zone, datetime(2026, 1, 1, tzinfo=UTC), monthly=False)


def test_a_day_that_a_zone_left_out_is_no_day() -> None:
    """Samoa went from the 29th to the 31st of December 2011."""
    with pytest.raises(ValueError, match="no 2011-12-30"):
        day_period(date(2011, 12, 30), "Pacific/Apia")
