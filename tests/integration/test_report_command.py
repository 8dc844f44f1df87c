"""`token-quota report` and `token-quota credit` as an operator runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.application.books import read_events
from kong_plugins.cli.main import app
from kong_plugins.domain.usage import Usage
from tests.unit.reports.report_books import PRICES, adjustment, golden, ms, report_of, request, write_books


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books") / "books.duckdb", golden())


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def report(*arguments: object, books: Path, prices: Path) -> Result:
    return run("report", *arguments, "--books", books, "--prices", prices)


def test_a_day_is_a_table(books: Path, prices: Path) -> None:
    """In a process of its own, whose output is no terminal: no colours, and the net of all ends its line."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kong_plugins.cli", "report", "daily", "--day", "2026-11-22"),
            *("--books", str(books), "--prices", str(prices)),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "TOKEN_QUOTA_LEDGER_URL"},
    )
    assert "\x1b" not in done.stdout
    assert re.search(r"^all .* 0\.400984 EUR$", done.stdout, re.MULTILINE)
    assert "Not rated: unlisted has no price" in done.stdout


@pytest.mark.parametrize("form", ["csv", "json", "html", "focus", "parquet"])
def test_a_report_goes_to_a_file(form: str, books: Path, prices: Path, tmp_path: Path) -> None:
    """Whole, nothing else beside it; what has no price is said on the way."""
    out = tmp_path / "out"
    result = report("daily", "--day", "2026-11-22", "-f", form, "-o", out, books=books, prices=prices)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Not rated" in result.stderr
    assert out.stat().st_size > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prices.yaml"]


def test_strict_fails_on_what_has_no_price_and_on_nothing_else(books: Path, prices: Path) -> None:
    """3 for the day with a model that is not listed, 0 for the next one and for a tenant without it."""
    assert report("daily", "--day", "2026-11-22", "--strict", books=books, prices=prices).exit_code == 3
    assert report("daily", "--day", "2026-11-23", "--strict", books=books, prices=prices).exit_code == 0
    own = report("daily", "--day", "2026-11-22", "--tenant", "zeta & co", "--strict", books=books, prices=prices)
    assert own.exit_code == 0


def test_an_empty_period_is_no_error(books: Path, prices: Path) -> None:
    """It says so: in the table itself, beside a file's rows otherwise."""
    for form, stream in (("table", "stdout"), ("csv", "stderr")):
        result = report("monthly", "--month", "2020-01", "-f", form, books=books, prices=prices)
        assert result.exit_code == 0
        assert "no events in this period" in getattr(result, stream).lower()


def test_a_month_is_the_sum_of_its_days(books: Path, prices: Path) -> None:
    """November: the three days with events, each at its own prices."""
    month = json.loads(report("monthly", "--month", "2026-11", "-f", "json", books=books, prices=prices).stdout)
    days = [
        json.loads(report("daily", "--day", f"2026-11-{day}", "-f", "json", books=books, prices=prices).stdout)
        for day in (21, 22, 23)
    ]
    assert month["net_micro"]["EUR"] == sum(day["net_micro"]["EUR"] for day in days)
    assert month["requests"] == sum(day["requests"] for day in days) == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("daily", "--day", "22.11."), "'22.11.' is neither like 2026-11-22"),
        (("daily", "--time-zone", "Mars"), "unknown time zone 'Mars'"),
        (("daily", "-f", "parquet"), "-o FILE"),
        (("entries",), "--day or --month"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], said: str, books: Path, prices: Path) -> None:
    """In a line, without a traceback, with what to do."""
    result = report(*arguments, books=books, prices=prices)
    assert result.exit_code == 1
    assert said in result.stderr


def test_books_and_prices_that_are_not_there_are_said(books: Path, prices: Path, tmp_path: Path) -> None:
    """Each with the option that names them; a broken list with its lines."""
    assert "no books at" in report("daily", books=tmp_path / "none", prices=prices).stderr
    result = run("report", "daily", "--books", books)
    assert (result.exit_code, "--prices FILE" in result.stderr) == (1, True)
    prices.write_text("currency: EUR\nmodels: {m: [{from: 2026-01-01, prompt: 1}]}")
    assert f"{prices}:2: m: completion is missing" in report("daily", books=books, prices=prices).stderr


def test_entries_are_double(books: Path, prices: Path, tmp_path: Path) -> None:
    """Two rows for each movement; all of them sum to zero."""
    out = tmp_path / "entries.csv"
    assert report("entries", "--day", "2026-11-22", "-o", out, books=books, prices=prices).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 2 * 6  # r1, r2, r3, its reversal, r8, a1; r4 and r7 move nothing
    assert sum(int(row["amount_micro"]) for row in rows) == 0


def test_a_frozen_period_is_never_rewritten(books: Path, prices: Path, tmp_path: Path) -> None:
    """The same again: as frozen. Another list, and a late event: exit 4, each difference named, the file as it was."""
    day = ("daily", "--day", "2026-11-21", "--freeze", tmp_path / "kept")
    assert "frozen: " in report(*day, books=books, prices=prices).stderr
    (statement,) = (tmp_path / "kept").iterdir()
    written = statement.read_bytes()
    assert json.loads(written)["net_micro"] == {"EUR": 274}
    again = report(*day, books=books, prices=prices)
    assert (again.exit_code, "as frozen" in again.stderr) == (0, True)

    prices.write_text(PRICES.replace('"0.55"', '"0.65"'))
    dearer = report(*day, books=books, prices=prices)
    assert dearer.exit_code == 4
    assert "the price list is another one" in dearer.stderr
    assert "acme / deepseek-r1 charges: 0.000274 frozen, 0.000284 now (0.00001)" in dearer.stderr

    prices.write_text(PRICES)
    late = golden() + request("late", "new", Usage(1000, 0), at_ms=ms("2026-11-21T12:00:00+00:00"))
    other = write_books(tmp_path / "late.duckdb", late)
    result = report(*day, books=other, prices=prices)
    assert result.exit_code == 4
    assert "new / deepseek-r1 charges: 0.00 frozen, 0.00055 now" in result.stderr
    assert "price list" not in result.stderr
    assert statement.read_bytes() == written


def test_a_period_that_is_not_over_or_not_rated_is_not_frozen(books: Path, prices: Path, tmp_path: Path) -> None:
    """Nothing is written; a statement that is damaged is not taken for one."""
    kept = tmp_path / "kept"
    today = report("daily", "--day", "today", "--freeze", kept, books=books, prices=prices)
    assert (today.exit_code, "is not over" in today.stderr) == (1, True)
    unrated = report("daily", "--day", "2026-11-20", "--freeze", kept, books=_unlisted(tmp_path), prices=prices)
    assert (unrated.exit_code, "without a price" in unrated.stderr) == (1, True)
    assert not kept.exists()
    kept.mkdir()
    (kept / "statement-2026-11-21-UTC-all.json").write_text('{"schema": 1}')
    damaged = report("daily", "--day", "2026-11-21", "--freeze", kept, books=books, prices=prices)
    assert (damaged.exit_code, "no statement of ours" in damaged.stderr) == (1, True)


def _unlisted(folder: Path) -> Path:
    at_ms = ms("2026-11-20T12:00:00+00:00")
    return write_books(folder / "unlisted.duckdb", request("r", "t", Usage(1, 1), model="unlisted", at_ms=at_ms))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedValkey:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def test_a_credit_goes_through_the_outbox_into_the_report(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Once for its id, however often it is said; the tenant owes less, and its account bears it."""
    said = ("credit", "acme", "12.5", "--currency", "EUR", "--reason", "incident", "--id", "c1", "--ledger", valkey.url)
    first, second = run(*said), run(*said)
    assert first.stdout == "credit of 12.50 EUR to acme, id c1\n"
    assert "was used before, nothing changed" in second.stdout
    entries = [entry for entry in read_events(connect_ledger(valkey.url)) if entry.event_id == "adjustment:acme/c1"]
    assert len(entries) == 1
    path = write_books(tmp_path / "b.duckdb", entries)
    with open_books(path, read_only=True) as connection:
        row = connection.execute("SELECT strftime(time, '%Y-%m-%d'), account, kind, adjustment FROM events").fetchone()
    assert row is not None
    assert row[1:] == ("goodwill", "adjustment", "credit")
    assert report_of(path, row[0]).net == {"EUR": -12_500_000}


def test_tenants_credits_of_one_id_all_count(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Books know an event by its id alone, whoever's it is."""
    tenants = ("one", "two", "two/three")
    for tenant in tenants:
        written = ("--currency", "EUR", "--reason", "promotion", "--id", "november", "--ledger", valkey.url)
        assert run("credit", tenant, "1", *written).exit_code == 0
    assert run("credit", "two", "1", *written[:-3], "three/november", *written[-2:]).exit_code == 0
    found = [each for each in read_events(connect_ledger(valkey.url)) if each.event_id.endswith("november")]
    with open_books(write_books(tmp_path / "b.duckdb", found), read_only=True) as connection:
        sums = connection.execute("SELECT tenant, sum(amount) FROM events GROUP BY tenant ORDER BY tenant").fetchall()
    assert sums == [("one", 1_000_000), ("two", 2_000_000), ("two/three", 1_000_000)]


def test_a_refund_in_part_is_about_a_request_and_an_id_is_made_up(valkey: EmbeddedValkey) -> None:
    """Without --id each is one of its own; the id of the request that it is about is no obstacle."""
    ledger = connect_ledger(valkey.url)
    ledger.record("acme", "r1", request("r1", "acme", Usage())[0].event)
    refund = (
        "credit",
        "acme",
        "0.021",
        "--currency",
        "EUR",
        "--kind",
        "refund",
        "--reference",
        "r1",
        "--reason",
        "cut",
    )
    made = [json.loads(run(*refund, "--json", "--ledger", valkey.url).stdout) for _ in range(2)]
    made.append(json.loads(run(*refund, "--id", "r1", "--json", "--ledger", valkey.url).stdout))
    assert all(one["written"] and one["amount_micro"] == 21_000 for one in made)
    assert len({one["id"] for one in made}) == 3
    events = {entry.event_id: json.loads(entry.event)["data"] for entry in read_events(ledger)}
    assert all(events[one["id"]]["reference"] == "r1" for one in made)
    assert events[made[0]["id"]]["account"] == "refunds"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("acme", "-5", "--currency", "EUR", "--reason", "x"), "a credit is positive"),
        (("acme", "0", "--currency", "EUR", "--reason", "x"), "the amount is zero"),
        (("acme", "1.0000001", "--currency", "EUR", "--reason", "x"), "7 decimals"),
        (("acme", "1", "--currency", "euro", "--reason", "x"), "ISO 4217"),
        (("acme", "1", "--currency", "EUR", "--reason", " "), "--reason is empty"),
        (("acme", "5000000000", "--currency", "EUR", "--reason", "x"), "units"),
        (
            ("acme", "1", "--currency", "EUR", "--reason", "x", "--ledger", "redis://127.0.0.1:1/0"),
            "try again with --id",
        ),
    ],
)
def test_a_credit_that_makes_no_sense_is_refused(arguments: tuple[str, ...], said: str) -> None:
    """Before anything is written; where nobody knows whether it was, with the id to say it again by."""
    result = run("credit", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_correction_may_be_in_the_operators_favour(valkey: EmbeddedValkey) -> None:
    """A negative amount is an amount, not an option."""
    result = run(
        *("credit", "acme", "-5", "--currency", "JPY", "--kind", "correction"),
        *("--reason", "billed too little", "--ledger", valkey.url),
    )
    assert result.stdout.startswith("correction of -5 JPY to acme, id ")


def test_adjustments_have_their_place_in_the_day(prices: Path, tmp_path: Path) -> None:
    """A credit alone is a day's business too."""
    path = write_books(tmp_path / "b.duckdb", adjustment("a", "acme", 1_500_000))
    result = report("daily", "--day", "2026-11-22", books=path, prices=prices)
    assert "-1.50 EUR" in result.stdout
    assert "incident of Tuesday" in result.stdout
