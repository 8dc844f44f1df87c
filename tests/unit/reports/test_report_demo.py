"""The reports at the end of `token-quota demo`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from report_books import request, write_books

from kong_plugins.cli.demo import daily_reports
from kong_plugins.cli.processes import StackError
from kong_plugins.domain.usage import Usage

MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def test_a_demo_over_midnight_has_a_report_for_each_day(tmp_path: Path) -> None:
    before, after = MIDNIGHT - timedelta(seconds=2), MIDNIGHT + timedelta(seconds=2)
    entries = [
        *request("r1", "acme", Usage(100, 50), at_ms=ms(before)),
        *request("r2", "acme", Usage(10, 5), at_ms=ms(after)),
        *request("r3", "acme", Usage(1, 1), at_ms=ms(after)),
    ]
    books = write_books(tmp_path / "books.duckdb", entries)
    found = daily_reports(books, before, 3, wait_s=0)
    assert [report.summary.used.prompt for report in found] == [100, 11]
    assert [report.summary.used.prompt for report in daily_reports(books, after, 2, wait_s=0)] == [11]


def test_events_that_do_not_come_are_told(tmp_path: Path) -> None:
    books = write_books(tmp_path / "books.duckdb", [*request("r1", "acme", Usage(1, 1), at_ms=ms(MIDNIGHT))])
    with pytest.raises(StackError, match="brought 1 of 2 events"):
        daily_reports(books, MIDNIGHT, 2, wait_s=0)
