"""Small books, worked out by hand, and the same figures in every format."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from report_books import PRICES, adjustment, golden, ms, reading, report_of, request, write_books

from kong_plugins.adapters.price_list import read_prices
from kong_plugins.application.report import Report, Scope, Tokens, ledger_entries
from kong_plugins.domain.events import AdjustmentKind
from kong_plugins.domain.periods import day_period
from kong_plugins.domain.usage import Usage
from kong_plugins.reports.focus import to_focus
from kong_plugins.reports.record import to_json
from kong_plugins.reports.render import Format, write_report
from kong_plugins.reports.rows import COLUMNS, Kind, to_csv
from kong_plugins.reports.table import print_report


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books") / "books.duckdb", golden())


@pytest.fixture(scope="module")
def report(books: Path) -> Report:
    return report_of(books)


def test_a_tenants_day_is_the_sum_of_its_events(report: Report) -> None:
    """r1 costs 330 + 56 + 657 + 438 = 1481; r2 2.74, so 3; r3 12.07, so 13, taken back; a credit of 500."""
    acme = report.tenants[0]
    assert (acme.tenant, dict(acme.net)) == ("acme", {"EUR": 1481 + 3 - 500})
    assert acme.summary.charged.amount == 1481 + 3 + 13
    assert acme.summary.reversed_charges.amount == -13
    assert acme.summary.tokens == Tokens(1008, 400, 510, 200)
    assert acme.summary.used == Tokens(1018, 400, 513, 200)


def test_charges_by_kind_are_exact_and_say_what_rounding_added(report: Report) -> None:
    """In pico-units: kinds and rounding sum to the amount; the reversal took its own rounding back."""
    charges = report.tenants[0].summary.charges
    assert charges.uncached == (330 * 100 + 55) * 10**4  # 600 and 1 prompt tokens at 0.55
    assert charges.cached == 56 * 10**6
    assert charges.completion == (657 * 100 + 219) * 10**4
    assert charges.reasoning == 438 * 10**6
    assert charges.rounding == 26 * 10**4  # 3 - 2.74
    assert charges.saved == 164 * 10**6  # 400 × (0.55 - 0.14)


def test_requests_are_counted_by_how_they_ended(report: Report) -> None:
    """Refusals by status and apart from evidence: nobody measured anything of theirs."""
    summary = report.tenants[0].summary
    assert summary.outcomes == {"completed": 3, "aborted": 1, "failed": 1, "denied": 2}
    assert summary.denied == {429: 1, 401: 1}
    assert summary.evidence == {"exact": 4, "continuous": 1}
    assert (summary.requests, summary.reversals) == (7, 1)


def test_latency_is_of_answers(report: Report) -> None:
    """First bytes of r1, r2, r3, r7; the whole of those that were completed; refusals are quick and do not count."""
    latency = report.tenants[0].latency
    assert latency.first is not None
    assert latency.whole is not None
    assert (latency.first.count, latency.first.p50, latency.first.p95) == (4, 100, 200)
    assert (latency.whole.count, latency.whole.p50, latency.whole.p99) == (3, 1000, 3000)


def test_a_model_without_a_price_is_listed_and_in_no_amount(report: Report) -> None:
    """Its 16 tokens are counted as used and as not rated."""
    assert [(tenant, model) for tenant, model, _ in report.unrated] == [("acme", "unlisted")]
    assert (report.summary.unrated, report.summary.unrated_tokens) == (1, 16)


def test_a_report_of_a_tenant_is_its_own(books: Path, report: Report) -> None:
    """The same figures as in the report of all, and nobody else's."""
    own = report_of(books, tenant="zeta & co")
    assert [tenant.tenant for tenant in own.tenants] == ["zeta & co"]
    assert own.net == report.tenants[1].net == {"EUR": 400_000}
    assert own.summary.requests == 1


def test_a_day_takes_its_first_millisecond_and_not_the_next_days(books: Path) -> None:
    """Half-open: r0 of the last millisecond is the day before, r9 of midnight the day after."""
    requests = [report_of(books, day).summary.requests for day in ("2026-11-21", "2026-11-22", "2026-11-23")]
    assert requests == [1, 8, 1]


def test_a_zones_day_has_its_own_events(tmp_path: Path) -> None:
    """On the day of 25 hours: both midnights of Berlin, and the hour that was there twice."""
    at = ("2026-10-24T21:59:59+00:00", "2026-10-24T22:00:00+00:00", "2026-10-25T00:30:00+00:00")
    at += ("2026-10-25T01:30:00+00:00", "2026-10-25T22:59:59+00:00", "2026-10-25T23:00:00+00:00")
    entries = [one for n, when in enumerate(at) for one in request(f"r{n}", "t", Usage(1, 1), at_ms=ms(when))]
    report = report_of(write_books(tmp_path / "b.duckdb", entries), "2026-10-25", zone="Europe/Berlin")
    assert report.summary.requests == 4
    hours = [n for n, bucket in enumerate(report.timeline) if bucket.requests]
    assert (len(report.timeline), hours) == (25, [0, 2, 3, 24])


def test_a_price_that_changes_within_the_day_rates_each_event_by_its_own_time(tmp_path: Path) -> None:
    """Berlin's 23 November begins an hour before the list's (UTC): the first hour is still at the old price."""
    before, after = ms("2026-11-22T23:30:00+00:00"), ms("2026-11-23T00:00:00+00:00")
    entries = request("old", "t", Usage(1000, 1000, 0, 500), at_ms=before)
    entries += request("new", "t", Usage(1000, 1000, 0, 500), at_ms=after, reversed_too=True)
    report = report_of(write_books(tmp_path / "b.duckdb", entries), "2026-11-23", zone="Europe/Berlin")
    new = 1000 + 500 * 3 + 500 * 4 + 10_000
    assert {
        line.entry.from_day: line.charges.amount for line in report.lines if line.entry and not line.usage.reversal
    } == {
        "2026-01-01": 550 + 2190,
        "2026-11-23": new,
    }
    assert report.summary.reversed_charges.amount == -new


def test_reversing_a_price_per_request_takes_it_back(tmp_path: Path) -> None:
    """The fee of 0.01 goes with the charge: nothing is left of the two."""
    at = ms("2026-11-24T00:00:00+00:00")
    entries = request("r", "t", Usage(5, 5), at_ms=at, reversed_too=True)
    report = report_of(write_books(tmp_path / "b.duckdb", entries), "2026-11-24")
    assert report.summary.charged.request == 10_000 * 10**6
    assert (report.summary.charges.amount, report.summary.charges.request, report.net) == (0, 0, {"EUR": 0})


def test_adjustments_are_kept_by_currency(tmp_path: Path) -> None:
    """A credit in dollars lowers no euro: two nets."""
    entries = request("r", "t", Usage(1000, 0)) + adjustment("a", "t", 70, currency="USD")
    entries += adjustment("b", "t", -30, kind=AdjustmentKind.CORRECTION)
    report = report_of(write_books(tmp_path / "b.duckdb", entries))
    assert report.net == {"EUR": 550 + 30, "USD": -70}


def test_an_empty_period_is_empty(books: Path) -> None:
    """Nothing owed, and every format can say so."""
    report = report_of(books, "2020-01-01")
    assert report.empty
    assert report.net == {"EUR": 0}
    out = io.StringIO()
    print_report(report, out)
    assert "No events in this period." in out.getvalue()
    assert len(to_csv(report).splitlines()) == 1


def sums(amounts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for tenant, amount in amounts:
        total[tenant] += amount
    return dict(total)


def test_every_format_says_the_same(report: Report, tmp_path: Path) -> None:
    """Net by tenant, from rows, Parquet, JSON and FOCUS, is the report's own."""
    owed = {tenant.tenant: tenant.net["EUR"] for tenant in report.tenants}
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert sums((row["tenant"], int(row["amount_micro"])) for row in rows) == owed
    write_report(report, Format.PARQUET, tmp_path / "r.parquet")
    stored = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert sums((row["tenant"], row["amount_micro"]) for row in stored) == owed
    record = json.loads(to_json(report))
    assert {tenant["tenant"]: tenant["net_micro"]["EUR"] for tenant in record["tenants"]} == owed
    focus = list(csv.DictReader(io.StringIO(to_focus(report))))
    billed: Mapping[str, Decimal] = defaultdict(Decimal)
    for row in focus:
        billed[row["SubAccountId"]] += Decimal(row["BilledCost"]) * 10**6  # type: ignore[index]
    assert dict(billed) == owed


def test_rows_are_integers_and_their_parts_sum_to_the_amount(report: Report, tmp_path: Path) -> None:
    """In CSV as in Parquet, whose types say so."""
    write_report(report, Format.PARQUET, tmp_path / "r.parquet")
    stored = pq.read_table(tmp_path / "r.parquet")
    types = {Kind.TEXT: "string", Kind.COUNT: "int64", Kind.PICO: "decimal128(38, 0)"}
    assert [(field.name, str(field.type)) for field in stored.schema] == [(n, types[k]) for n, k in COLUMNS.items()]
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in stored.to_pylist()
    ] == rows
    for row in rows:
        if row["line"] in {"request", "reversal"}:
            parts = [int(row[f"{part}_pico"]) for part in ("uncached", "cached", "completion", "reasoning", "request")]
            assert sum(parts) + int(row["rounding_pico"]) == int(row["amount_micro"]) * 10**6


def test_the_terminal_shows_figures_whole_and_names_harmless(tmp_path: Path) -> None:
    """Markup is text, control characters are not passed on, no figure is cut off."""
    entries = request("r", "[red]x[/red]\x1b[2J", Usage(123_456_789, 1), route="a" * 60)
    report = report_of(write_books(tmp_path / "b.duckdb", entries))
    out = io.StringIO()
    print_report(report, out)
    text = out.getvalue()
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "123,456,789" in text
    assert "67.901237" in text


def test_double_entry_of_the_books_sums_to_zero(books: Path, report: Report) -> None:
    """By currency; a tenant's account is what its report says it owes."""
    with reading(books) as queries:
        scope = Scope(day_period(date(2026, 11, 22), "UTC"))
        entries = list(ledger_entries(queries, read_prices(PRICES), scope))
    assert sum(entry.amount for entry in entries) == 0
    receivable = sums((e.account.removeprefix("receivable:"), e.amount) for e in entries if e.account[:3] == "rec")
    assert receivable == {tenant.tenant: tenant.net["EUR"] for tenant in report.tenants}
    assert {entry.account for entry in entries} >= {"revenue:deepseek-r1", "contra:goodwill"}


def test_rating_again_leaves_the_events_as_they_are(books: Path) -> None:
    """Another list, other amounts; the file's bytes are the same."""
    before = books.read_bytes()
    dearer = report_of(books, prices=PRICES.replace("0.55", "5.50"))
    assert dearer.net["EUR"] > report_of(books).net["EUR"]
    assert books.read_bytes() == before
