"""`token-quota demo`: the whole way of a request, shown live, and the books at the end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kong_plugins.adapters.engine_metrics import EngineCounters, EngineMetricsError, read_counters
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.price_list import load_prices
from kong_plugins.application.books import Books, read_events, sum_events
from kong_plugins.application.ports import Balance, Ledger, LedgerUnavailable
from kong_plugins.application.report import Report, Scope, make_report
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import StackError
from kong_plugins.cli.quota import table as budgets_table
from kong_plugins.cli.stack import StackOptions, start_stack
from kong_plugins.cli.traffic import Traffic
from kong_plugins.domain.periods import parse_period
from kong_plugins.domain.windows import (
    FixedWindow,
    RollingWindow,
    TokenBucket,
    WindowSpec,
    parse_description,
    window_at,
)
from kong_plugins.reports.render import Format, write_report

TENANTS = ("tenant_a", "tenant_b")
REFRESH_S = 0.25
SETTLE_S = 10.0  # A log phase runs a moment after its answer; past this a hold counts as lost.


def run(options: StackOptions, seconds: int) -> int:
    """Returns the exit status: 0 when a tenant ran out, saw its 429, and the books balance."""
    console = Console(highlight=False)
    started = time.monotonic()
    try:
        with ExitStack() as resources:
            stack = start_stack(options, resources, lambda line: console.print(line, markup=False, soft_wrap=True))
            ledger = connect_ledger(stack.ledger_url)
            console.print(f"ready       after {time.monotonic() - started:.1f} s\n")
            keys = {tenant: stack.keys[f"DECK_{tenant.upper()}_KEY"] for tenant in TENANTS}
            started_us = time.time_ns() // 1000
            traffic = Traffic(f"{stack.url}/v1", keys)
            peak = _drive(traffic, ledger, seconds, console)
            balances = _settled(ledger)
            books, engine = sum_events(read_events(ledger)), read_counters(stack.engine_root)
            differences = _differences(books, engine, balances, started_us)
            status = _summary(traffic, books, engine, peak, differences, console)
            assert stack.books is not None
            for report in daily_reports(stack.books, datetime.fromtimestamp(started_us / 1e6, UTC), books.requests):
                console.print()
                write_report(report, Format.TABLE, None)
            return status
    except (StackError, LedgerUnavailable, EngineMetricsError) as error:
        console.print(f"token-quota demo: {error}", style="red", markup=False)
        return 1


def daily_reports(books: Path, since: datetime, requests: int, wait_s: float = SETTLE_S) -> list[Report]:
    """What the tenants owe, as `token-quota report daily` tells it: from DuckDB, at the example's prices. One for each
    day (UTC) from ``since`` until now that has any of them: a demo may run over midnight.

    Raises:
        StackError: the collector did not bring so many requests' events there.
    """
    from kong_plugins.adapters.books import open_books
    from kong_plugins.adapters.books.report_queries import ReportQueries

    prices = load_prices(source_root() / "kong" / "prices.yaml")
    deadline = time.monotonic() + wait_s
    while True:
        until = datetime.now(UTC)
        days = [since.date() + timedelta(days=n) for n in range((until.date() - since.date()).days + 1)]
        with open_books(books, read_only=True) as connection:
            queries = ReportQueries(connection)
            scopes = [Scope(parse_period(day.isoformat(), "UTC", until, monthly=False)) for day in days]
            reports = [make_report(queries, prices, scope) for scope in scopes]
        delivered = sum(report.summary.outcomes.total() for report in reports)
        if delivered >= requests:
            return [report for report in reports if report.summary.outcomes]
        if time.monotonic() > deadline:
            raise StackError(f"the collector brought {delivered} of {requests} events to the books in {wait_s} s")
        time.sleep(0.05)


def _balances(ledger: Ledger) -> list[Balance]:
    return [balance for tenant in ledger.tenants() for balance in ledger.balances(tenant)]


def _view(traffic: Traffic, balances: list[Balance]) -> Group:
    lines = []
    for tenant, tally in traffic.tallies.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.requests.items()))
        lines.append(Text(f"{tenant}: {kinds or 'starting'}; {tally.refused} refused"))
    return Group(budgets_table(balances), Text(""), *lines)


def _drive(traffic: Traffic, ledger: Ledger, seconds: int, console: Console) -> int:
    """Run the traffic under a live table. Returns the most tokens seen held at one time, of the widest budget."""
    deadline, peak = time.monotonic() + seconds, 0
    with Live(_view(traffic, []), console=console, refresh_per_second=8) as live:
        traffic.start()
        while not traffic.tenants_out() and time.monotonic() < deadline:
            if any(tally.failures for tally in traffic.tallies.values()):
                break
            time.sleep(REFRESH_S)
            balances = _balances(ledger)
            peak = max(peak, *(balance.state.held for balance in balances), 0)
            live.update(_view(traffic, balances))
        traffic.stop()
        live.update(_view(traffic, _balances(ledger)))
    return peak


def _settled(ledger: Ledger) -> list[Balance]:
    """Balances once no hold is open, or after SETTLE_S as they are."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        balances = _balances(ledger)
        if not any(balance.state.held for balance in balances) or time.monotonic() > deadline:
            return balances
        time.sleep(0.05)


def _one_window(window: WindowSpec, since_us: int, now_us: int) -> bool:
    """Whether everything since then still counts in the current window."""
    match window:
        case FixedWindow():
            return window_at(window, since_us) == window_at(window, now_us)
        case RollingWindow():
            return now_us - since_us < window.length_s * 1_000_000
        case TokenBucket():
            return False  # refills all the time


def _differences(books: Books, engine: EngineCounters, balances: list[Balance], started_us: int) -> list[str]:
    """Every way in which ledger, events and engine disagree; empty: the books balance.

    A counter is compared with its events only where one window holds them all.
    """
    now_us = time.time_ns() // 1000
    found = []
    if books.prompt != engine.prompt:
        found.append(f"prompt tokens: billed {books.prompt:,}, engine {engine.prompt:,}")
    if books.completion != engine.completion:
        found.append(f"completion tokens: billed {books.completion:,}, engine {engine.completion:,}")
    if books.duplicates:
        found.append(f"{books.duplicates} events came twice")
    for balance in balances:
        state = balance.state
        if state.held:
            found.append(f"{balance.tenant} {state.key}: {state.held:,} still held")
        if not _one_window(parse_description(balance.window), started_us, now_us):
            continue
        if state.committed != books.posted[balance.tenant, state.key]:
            found.append(
                f"{balance.tenant} {state.key}: counter {state.committed:,}, "
                f"events posted {books.posted[balance.tenant, state.key]:,}"
            )
        if balance.mode == "hard" and state.committed > state.limit:
            found.append(f"{balance.tenant} {state.key}: {state.committed:,} of {state.limit:,}: overshoot")
    return found


def _summary(
    traffic: Traffic, books: Books, engine: EngineCounters, peak: int, differences: list[str], console: Console
) -> int:
    """Show both sides of the books. Returns the exit status."""
    refused = sum(tally.refused for tally in traffic.tallies.values())
    view = Table(box=None, show_header=False, pad_edge=False)
    view.add_row("requests", f"{sum(sum(tally.requests.values()) for tally in traffic.tallies.values()) + refused:,}")
    view.add_row("settled", f"{books.requests:,} ({_spelled(books.outcomes)}; usage {_spelled(books.evidence)})")
    view.add_row("refused", f"{refused:,}")
    view.add_row(
        "tokens settled",
        f"{books.total:,} = {books.prompt:,} prompt ({books.cached:,} cached) + {books.completion:,} completion",
    )
    view.add_row(
        "tokens held", f"{peak:,} at most at one time on one budget, none now" if not differences else f"{peak:,}"
    )
    view.add_row("engine counted", f"{engine.prompt:,} prompt + {engine.completion:,} completion")
    view.add_row("books balance", "[red]no[/red]" if differences else "[green]yes[/green]")
    console.print()
    console.print(view)
    for difference in differences:
        console.print(f"  {difference}", style="red", markup=False)
    status = 1 if differences else 0
    for tenant, tally in traffic.tallies.items():
        if tally.last_refusal:
            console.print(f"\nopenai.RateLimitError for {tenant}:\n  {tally.last_refusal}", markup=False)
        for failure in tally.failures:
            console.print(f"{tenant}: {failure}", style="red", markup=False)
            status = 1
    if not traffic.tenants_out():
        console.print("no tenant ran out of tokens in time: give it longer with --seconds", style="red")
        status = 1
    return status


def _spelled(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"
