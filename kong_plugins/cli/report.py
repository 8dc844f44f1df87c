"""`token-quota report …`: what tenants used and owe, from the books and a price list."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from kong_plugins.adapters.price_list import PriceListError, load_prices
from kong_plugins.application.report import Books, Report, Scope, ledger_entries, make_report
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.stack import default_data_dir
from kong_plugins.domain.money import format_micro
from kong_plugins.domain.periods import Period, parse_period
from kong_plugins.domain.rating import PriceList
from kong_plugins.reports.render import Format, write_report
from kong_plugins.reports.wording import unrated_words

app = typer.Typer(help="Usage and charges of a day or a month, as tables, files or one web page.", no_args_is_help=True)

BOOKS_FILE = "books.duckdb"
BOOKS_WAIT_S = 30.0  # the collector gives the file up at least once a second
EXIT_UNRATED = 3
EXIT_DIFFERS = 4

TenantOption = Annotated[str | None, typer.Option(help="This tenant only.", show_default="all")]
ZoneOption = Annotated[
    str, typer.Option("--time-zone", envvar="TOKEN_QUOTA_TIME_ZONE", help="IANA name; days and months begin there.")
]
FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        "-f",
        help="csv and parquet: rows of integers. html: one file for a browser or the printer. focus: FinOps FOCUS 1.2,"
        " CSV. json: everything.",
    ),
]
PricesOption = Annotated[
    Path | None, typer.Option(envvar="TOKEN_QUOTA_PRICES", help="Price list (YAML).", show_default=False)
]
BooksOption = Annotated[
    Path | None,
    typer.Option(
        envvar="TOKEN_QUOTA_BOOKS", help="The books' DuckDB file.", show_default="books.duckdb of `token-quota up`"
    ),
]
OutOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.", show_default="stdout")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit 3 when something has no price.")]
FreezeOption = Annotated[
    Path | None,
    typer.Option(
        help="Keep what the period comes to as a statement in this directory; where one is there already, compare with"
        " it and exit 4 when it differs.",
        show_default=False,
    ),
]


@app.command()
def daily(
    day: Annotated[str, typer.Option(help="2026-11-22, today or yesterday.")] = "today",
    tenant: TenantOption = None,
    time_zone: ZoneOption = "UTC",
    form: FormatOption = Format.TABLE,
    prices: PricesOption = None,
    books: BooksOption = None,
    out: OutOption = None,
    strict: StrictOption = False,
    freeze: FreezeOption = None,
) -> None:
    """A day's usage and charges.

      token-quota report daily --day yesterday --time-zone Europe/Berlin --prices prices.yaml
      token-quota report daily --tenant tenant_a --format html -o day.html --prices prices.yaml

    A day without events says so and exits 0. A model without a price is listed as not rated, never counted as free.
    """
    period = _period(day, time_zone, monthly=False)
    _report(Scope(period, tenant), form, prices, books, out, strict, freeze)


@app.command()
def monthly(
    month: Annotated[str, typer.Option(help="2026-11, this or last.")] = "this",
    tenant: TenantOption = None,
    time_zone: ZoneOption = "UTC",
    form: FormatOption = Format.TABLE,
    prices: PricesOption = None,
    books: BooksOption = None,
    out: OutOption = None,
    strict: StrictOption = False,
    freeze: FreezeOption = None,
) -> None:
    """A month's usage and charges.

    token-quota report monthly --month last --format focus -o focus.csv --prices prices.yaml
    token-quota report monthly --month 2026-10 --freeze statements --prices prices.yaml
    """
    period = _period(month, time_zone, monthly=True)
    _report(Scope(period, tenant), form, prices, books, out, strict, freeze)


@app.command()
def entries(
    day: Annotated[str | None, typer.Option(help="2026-11-22, today or yesterday.", show_default=False)] = None,
    month: Annotated[str | None, typer.Option(help="2026-11, this or last.", show_default=False)] = None,
    tenant: TenantOption = None,
    time_zone: ZoneOption = "UTC",
    prices: PricesOption = None,
    books: BooksOption = None,
    out: OutOption = None,
) -> None:
    """Double entry of a day or a month as CSV, for a ledger: two rows for each movement, summing to zero.

    token-quota report entries --month last -o entries.csv --prices prices.yaml
    """
    if (day is None) == (month is None):
        _fail("say which period: --day or --month")
    period = _period(day or month or "", time_zone, monthly=month is not None)
    price_list = _prices(prices)
    with _open(books) as opened, _output(out) as file:
        from kong_plugins.reports.rows import ENTRY_COLUMNS, as_text, entry_row

        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ENTRY_COLUMNS)
        found = map(entry_row, ledger_entries(opened, price_list, Scope(period, tenant)))
        writer.writerows([as_text(value) for value in row] for row in found)


def _report(
    scope: Scope,
    form: Format,
    prices: Path | None,
    books: Path | None,
    out: Path | None,
    strict: bool,
    freeze: Path | None,
) -> None:
    price_list = _prices(prices)
    with _open(books) as opened:
        report = make_report(opened, price_list, scope)
    try:
        write_report(report, form, out)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        _fail(str(error))
    if form is not Format.TABLE or out is not None:
        _notes(report, form)
    differs = freeze is not None and _freeze(report, freeze)
    if strict and report.unrated:
        raise typer.Exit(EXIT_UNRATED)
    if differs:
        raise typer.Exit(EXIT_DIFFERS)


def _notes(report: Report, form: Format) -> None:
    """What a table says by itself."""
    if report.empty:
        typer.echo(f"{report.scope.period.label}: no events in this period", err=True)
    for warning in unrated_words(report):
        typer.echo(f"{warning}{'; FOCUS leaves it out' if form is Format.FOCUS else ''}", err=True)


def _freeze(report: Report, directory: Path) -> bool:
    """Whether a statement that is there already says something else."""
    from kong_plugins.reports.statement import StatementError, freeze

    try:
        frozen = freeze(report, directory, time.time_ns() // 1_000_000)
    except (StatementError, OSError) as error:
        _fail(str(error))
    if frozen.created:
        typer.echo(f"frozen: {frozen.path}", err=True)
    elif not frozen.differences:
        typer.echo(f"as frozen: {frozen.path}", err=True)
    else:
        why = "" if frozen.same_prices else "; the price list is another one"
        typer.echo(f"differs from {frozen.path} (not rewritten){why}:", err=True)
        for line in frozen.differences:
            change = format_micro(line.now - line.frozen, line.currency)
            typer.echo(
                f"  {line.line}: {format_micro(line.frozen, line.currency)} frozen,"
                f" {format_micro(line.now, line.currency)} now ({change})",
                err=True,
            )
    return bool(frozen.differences)


def _period(text: str, time_zone: str, *, monthly: bool) -> Period:
    try:
        return parse_period(text, time_zone, datetime.now(UTC), monthly=monthly)
    except ValueError as error:
        _fail(str(error))


def _prices(path: Path | None) -> PriceList:
    if path is None:
        example = source_root() / "kong" / "prices.yaml"
        _fail(f"no price list: give --prices FILE or TOKEN_QUOTA_PRICES; {example} is an example to start from")
    try:
        return load_prices(path)
    except PriceListError as error:
        _fail(str(error))


@contextmanager
def _open(path: Path | None) -> Iterator[Books]:
    path = path or default_data_dir() / BOOKS_FILE
    try:
        from kong_plugins.adapters.books import BooksUnavailable, open_books
        from kong_plugins.adapters.books.report_queries import ReportQueries
    except ModuleNotFoundError as error:
        _fail(f"reports need {error.name}: pip install 'kong-token-quota[books]'")
    try:
        with open_books(path, read_only=True, wait_s=BOOKS_WAIT_S) as connection:
            yield ReportQueries(connection)
    except BooksUnavailable as error:
        _fail(str(error))


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(out)
    except OSError as error:
        _fail(str(error))
    finally:
        part.unlink(missing_ok=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"token-quota report: {message}", err=True)
    raise typer.Exit(1)
