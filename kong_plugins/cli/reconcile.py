"""`token-quota reconcile`: do the books agree with the ledger and with the engines."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from kong_plugins.application.ports import LedgerUnavailable, SinkUnavailable
from kong_plugins.application.reconcile_events import Pace
from kong_plugins.cli.stack import STATE_FILE, default_data_dir
from kong_plugins.domain.periods import Period, parse_period

if TYPE_CHECKING:
    from kong_plugins.cli.reconcile_run import Options, Result

BOOKS_FILE = "books.duckdb"
EXIT_CANNOT = 2


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


class Side(StrEnum):
    LEDGER = "ledger"
    ENGINE = "engine"


def reconcile(
    day: Annotated[str, typer.Option(help="2026-11-22, today (so far) or yesterday.")] = "today",
    model: Annotated[
        str | None, typer.Option(help="This model only, on the engines' side.", show_default="all")
    ] = None,
    time_zone: Annotated[
        str, typer.Option(envvar="TOKEN_QUOTA_TIME_ZONE", help="IANA name; the day begins there.")
    ] = "UTC",
    books: Annotated[
        Path | None,
        typer.Option(
            envvar="TOKEN_QUOTA_BOOKS", help="The books' DuckDB file.", show_default="books.duckdb of `token-quota up`"
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar="TOKEN_QUOTA_LEDGER_URL",
            help="The ledger's URL, as the plugins have it.",
            show_default="that of a running `token-quota up`",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Scrape this engine now as well, http://127.0.0.1:8000: a day that is not over is compared up to this"
            " moment. Repeat for more. The others are known by the collector's scrapes."
        ),
    ] = None,
    only: Annotated[Side | None, typer.Option(help="Compare with one side only.", show_default="both")] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="NAME=MODEL: the engine counts requests for NAME as MODEL (other names, LoRA adapters)."),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="The fastest that one answer is generated: bounds what an engine may have generated unseen.",
            show_default="of the day's fastest answer, else 250",
        ),
    ] = None,
    notice_ms: Annotated[int, typer.Option(min=0, help="How long an engine may go on after a client has left.")] = 250,
    clock_slack_ms: Annotated[
        int, typer.Option(min=0, help="How far the clocks of gateways and collector may be apart.")
    ] = 1000,
    form: Annotated[Format, typer.Option("--format", "-f", help="json names every event.")] = Format.TABLE,
) -> None:
    """Compare a day's events with the ledger's counters and with the engines' own, and explain every difference.

      token-quota reconcile --day yesterday --time-zone Europe/Berlin
      token-quota reconcile --engine http://127.0.0.1:8000 --format json

    Exits 0 when everything agrees or is explained by events, 1 when something is not, 2 when something could not be
    compared (and says what is missing). A day is best reconciled soon after it is over: the ledger forgets its counters
    a day later.
    """
    url = None if only is Side.ENGINE else ledger or _running_ledger()
    try:
        from kong_plugins.cli.reconcile_run import Options

        options = Options(
            period=_period(day, time_zone),
            books=books or default_data_dir() / BOOKS_FILE,
            ledger_url=url,
            engines=tuple(engine or ()),
            engine_side=only is not Side.LEDGER,
            model=model,
            aliases=dict(map(_alias, alias or ())),
            pace=Pace(tokens_per_second or Pace().tokens_s, notice_ms * 1000),
            pace_given=tokens_per_second is not None,
            slack_us=clock_slack_ms * 1000,
        )
        result = _run(options, form)
    except ValueError as error:
        _fail(str(error))
    except LedgerUnavailable as error:
        _fail(f"the ledger at {url} does not answer: {error}; is it running, and is --ledger right? (--only engine)")
    except SinkUnavailable as error:
        _fail(str(error))
    raise typer.Exit(result.status)


def _run(options: Options, form: Format) -> Result:
    from kong_plugins.cli import reconcile_run
    from kong_plugins.cli.reconcile_view import document, show

    with Console(stderr=True).status("reconciling") as status:
        result = reconcile_run.reconcile(options, status.update)
    if form is Format.JSON:
        typer.echo(json.dumps(document(result)))
    else:
        show(result, Console(highlight=False))
    return result


def _alias(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise ValueError(f"--alias is NAME=MODEL, not {text!r}")
    return name, model


def _period(day: str, time_zone: str) -> Period:
    period = parse_period(day, time_zone, datetime.now(UTC), monthly=False)
    if period.start_ms > time.time_ns() // 1_000_000:
        raise ValueError(f"{period.label} has not begun yet")
    return period


def _running_ledger() -> str:
    state = default_data_dir() / STATE_FILE
    try:
        url: str = json.loads(state.read_text())["ledger_url"]
    except (OSError, ValueError, KeyError):
        _fail(
            "no ledger given: use --ledger URL or TOKEN_QUOTA_LEDGER_URL, start one with `token-quota up`, or compare"
            " with the engines alone: --only engine"
        )
    return url


def _fail(message: str) -> NoReturn:
    typer.echo(f"token-quota reconcile: {message}", err=True)
    raise typer.Exit(EXIT_CANNOT)
