"""A report as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kong_plugins.application.report import Latency, Percentiles, Report, Summary
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.money import MICRO_DIGITS, format_micro, format_pico
from kong_plugins.domain.usage import Evidence
from kong_plugins.reports.wording import adjusted, net_words, prices_words, title, unrated_words

TENANT_MAX = 32
TOPS_TENANTS_MAX = 8  # with more, the busiest routes and credentials of each are a list that nobody reads
WIDTH = 10_000  # wider than any table: a figure that is cut off is worse than a line that the terminal wraps


def print_report(report: Report, file: TextIO) -> None:
    """Tables one below the other; what needs attention comes first. Colours where ``file`` is a terminal."""
    console = Console(file=file, width=WIDTH, soft_wrap=True)
    console.print(Text(title(report), style="bold"))
    console.print(Text(prices_words(report), style="dim"))
    if report.empty:
        console.print("No events in this period.")
        return
    for warning in unrated_words(report):
        console.print(Text(warning, style="bold red"))
    for heading, table in _tables(report):
        console.print()
        console.print(Text(heading, style="bold"))
        console.print(table)
    if len(report.tenants) > TOPS_TENANTS_MAX:
        console.print()
        console.print(
            Text("Busiest routes and credentials: of one tenant (--tenant), or in html and json.", style="dim")
        )


def _tables(report: Report) -> Iterator[tuple[str, Table]]:
    currency = report.prices.currency
    yield f"Usage and charges ({currency})", _usage(report)
    yield f"Charges by kind ({currency})", _kinds(report)
    yield "Requests", _requests(report)
    if report.latency.first or report.latency.whole:
        yield "Latency in seconds: median, 95 %, 99 %", _latency(report)
    if report.adjustments:
        yield "Credits, refunds and corrections", _adjustments(report)
    if len(report.tenants) > TOPS_TENANTS_MAX:
        return
    for what in ("routes", "credentials"):
        if any(getattr(tenant, what) for tenant in report.tenants):
            yield f"Busiest {what} ({currency})", _tops(report, what)


def _usage(report: Report) -> Table:
    table = _table(["tenant", "model"], ["requests", "prompt", "of it cached", "completion", "of it reasoning"])
    for name in ("charged", "reversed", "adjusted", "net"):
        table.add_column(name, justify="right", no_wrap=True)
    currency = report.prices.currency
    for tenant in report.tenants:
        for model in tenant.models:
            table.add_row(_name(tenant.tenant), _name(model.model or "–"), *_figures(model.summary, currency))
        table.add_row(
            _name(tenant.tenant),
            Text("all", style="dim"),
            *_figures(tenant.summary, currency),
            adjusted(tenant.adjustments),
            net_words(tenant.net),
            style="bold",
            end_section=True,
        )
    table.add_row("all", "", *_figures(report.summary, currency), adjusted(report.adjustments), net_words(report.net))
    return table


def _figures(summary: Summary, currency: str) -> tuple[str, ...]:
    tokens = summary.tokens
    return (
        f"{summary.requests:,}",
        f"{tokens.prompt:,}",
        f"{tokens.cached:,}",
        f"{tokens.completion:,}",
        f"{tokens.reasoning:,}",
        "not rated" if summary.unrated and not summary.charged.amount else money(summary.charged.amount, currency),
        money(summary.reversed_charges.amount, currency),
    )


def _kinds(report: Report) -> Table:
    table = _table(
        ["tenant"], ["prompt", "cached", "completion", "reasoning", "requests", "rounding", "saved by cache"]
    )
    currency = report.prices.currency
    summaries = _with_all(report)
    every = [summary.charges for _, summary in summaries]
    parts = [
        [charges.uncached for charges in every],
        [charges.cached for charges in every],
        [charges.completion for charges in every],
        [charges.reasoning for charges in every],
        [charges.request for charges in every],
        [charges.rounding for charges in every],
        [charges.saved for charges in every],
    ]
    shown = _aligned([[format_pico(amount, currency) for amount in part] for part in parts])
    for (name, _), row in zip(summaries, shown, strict=True):
        table.add_row(_name(name), *row)
    return table


def _requests(report: Report) -> Table:
    table = _table(["tenant"], [*Outcome, "reversals", *Evidence])
    for name, summary in _with_all(report):
        denied = ", ".join(f"{count:,} × {status}" for status, count in sorted(summary.denied.items()) if status)
        table.add_row(
            _name(name),
            *(
                denied if outcome is Outcome.DENIED and denied else f"{summary.outcomes[outcome]:,}"
                for outcome in Outcome
            ),
            f"{summary.reversals:,}",
            *(f"{summary.evidence[evidence]:,}" for evidence in Evidence),
        )
    return table


def _latency(report: Report) -> Table:
    table = _table(["tenant"], ["first byte", "whole answer", "upstream"])
    for tenant in report.tenants:
        table.add_row(_name(tenant.tenant), *_seconds(tenant.latency))
    table.add_row("all", *_seconds(report.latency))
    return table


def _seconds(latency: Latency) -> tuple[str, ...]:
    return tuple(_three(found) for found in (latency.first, latency.whole, latency.upstream))


def _three(found: Percentiles | None) -> str:
    return (
        "–" if found is None else "  ".join(f"{ms // 1000}.{ms % 1000:03}" for ms in (found.p50, found.p95, found.p99))
    )


def _adjustments(report: Report) -> Table:
    table = _table(["tenant", "kind"], ["in its favour"], ["account", "reason", "about", "id"])
    for adjustment in report.adjustments:
        table.add_row(
            _name(adjustment.tenant),
            adjustment.kind,
            f"{format_micro(adjustment.amount, adjustment.currency)} {adjustment.currency}",
            _name(adjustment.account),
            _words(adjustment.reason),
            _words(adjustment.reference or "–"),
            _words(adjustment.event_id),
        )
    return table


def _tops(report: Report, what: str) -> Table:
    table = _table(["tenant", what.removesuffix("s")], ["requests", "tokens", "charged"])
    for tenant in report.tenants:
        for top in getattr(tenant, what):
            table.add_row(
                _name(tenant.tenant),
                _name(top.name),
                f"{top.requests:,}",
                f"{top.tokens:,}",
                money(top.amount, report.prices.currency),
            )
    return table


def money(amount: int, currency: str) -> str:
    """All digits that an amount has, so that points stand below one another."""
    text = format_micro(amount, currency)
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals.ljust(MICRO_DIGITS, '0')}"


def _aligned(columns: list[list[str]]) -> list[list[str]]:
    """Decimal numbers with as many decimals as the longest of their column, as rows."""
    for column in columns:
        digits = max(len(text.partition(".")[2]) for text in column)
        if digits:
            column[:] = [
                f"{whole}.{decimals.ljust(digits, '0')}"
                for whole, _, decimals in (text.partition(".") for text in column)
            ]
    return [list(row) for row in zip(*columns, strict=True)]


def _with_all(report: Report) -> list[tuple[str, Summary]]:
    return [*((tenant.tenant, tenant.summary) for tenant in report.tenants), ("all", report.summary)]


def _table(names: list[str], figures: list[str], words: list[str] | None = None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for name in words or ():
        table.add_column(name)
    return table


def _name(name: str) -> Text:
    text = _words(name)
    text.truncate(TENANT_MAX, overflow="ellipsis")
    return text


def _words(words: str) -> Text:
    """Names and reasons are data: no markup in them, and no control characters for the terminal."""
    return Text("".join(char if char.isprintable() else "�" for char in words))
