"""What table and page say in words, so that they say it alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from kong_plugins.application.report import Report, Summary
from kong_plugins.domain.double_entry import Adjustment
from kong_plugins.domain.money import format_micro


def net_words(net: Mapping[str, int]) -> str:
    """``12.50 EUR``, one after the other where there are several."""
    return ", ".join(f"{format_micro(amount, currency)} {currency}" for currency, amount in net.items())


def adjusted(adjustments: Iterable[Adjustment]) -> str:
    """What adjustments take off what is owed, by currency; empty without any."""
    sums = Counter[str]()
    for adjustment in adjustments:
        sums[adjustment.currency] -= adjustment.amount
    return net_words(dict(sorted(sums.items())))


def title(report: Report) -> str:
    period = report.scope.period
    whose = f" of {report.scope.tenant}" if report.scope.tenant else ""
    return f"Usage and charges{whose}, {period.label} ({period.time_zone})"


def prices_words(report: Report) -> str:
    """Which list rated it."""
    return f"Prices in {report.prices.currency}, list {report.prices.digest[:12] or 'unnamed'}"


def unrated_words(report: Report) -> list[str]:
    """A warning for each model without a price."""
    by_model = defaultdict[str, list[Summary]](list)
    for _, model, summary in report.unrated:
        by_model[model].append(summary)
    return [
        f"Not rated: {model or 'an unnamed model'} has no price in the list at that time."
        f" {sum(one.unrated for one in sums):,} events with {sum(one.unrated_tokens for one in sums):,} tokens of"
        f" {len(sums):,} {'tenant' if len(sums) == 1 else 'tenants'} are in no amount."
        for model, sums in by_model.items()
    ]


def mark_label(report: Report, start_ms: int) -> str:
    """Name of an hour (``14:00``) or day (``22``) of the report's timeline in its own time zone."""
    local = datetime.fromtimestamp(start_ms // 1000, UTC).astimezone(ZoneInfo(report.scope.period.time_zone))
    return f"{local.day}" if report.scope.period.monthly else f"{local:%H:%M}"
