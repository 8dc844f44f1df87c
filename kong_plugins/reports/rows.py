"""A report as rows for programs: integers only, one row for all events that have everything but their counts in common.

``amount_micro`` is what the tenant owes; summed over all rows of a currency it is the period's net. The parts of a
charge (``*_pico``) are exact and sum, with ``rounding_pico``, to a million times ``amount_micro``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from enum import Enum

from kong_plugins.application.report import Report
from kong_plugins.domain.double_entry import Entry
from kong_plugins.domain.periods import iso_utc


class Kind(Enum):
    """What a column holds. PICO: an integer that may need more than 64 bits."""

    TEXT = "text"
    COUNT = "count"
    PICO = "pico"


COLUMNS: dict[str, Kind] = {
    "period": Kind.TEXT,
    "time_zone": Kind.TEXT,
    "start": Kind.TEXT,
    "end": Kind.TEXT,
    "line": Kind.TEXT,  # request, reversal, credit, refund, correction
    "tenant": Kind.TEXT,
    "model": Kind.TEXT,
    "outcome": Kind.TEXT,
    "status": Kind.COUNT,
    "evidence": Kind.TEXT,
    "price_id": Kind.TEXT,
    "currency": Kind.TEXT,
    "events": Kind.COUNT,
    "unrated": Kind.COUNT,
    "prompt": Kind.COUNT,
    "cached": Kind.COUNT,
    "completion": Kind.COUNT,
    "reasoning": Kind.COUNT,
    "uncached_pico": Kind.PICO,
    "cached_pico": Kind.PICO,
    "completion_pico": Kind.PICO,
    "reasoning_pico": Kind.PICO,
    "request_pico": Kind.PICO,
    "rounding_pico": Kind.PICO,
    "saved_pico": Kind.PICO,
    "amount_micro": Kind.COUNT,
    "event_id": Kind.TEXT,
    "account": Kind.TEXT,
    "reason": Kind.TEXT,
    "reference": Kind.TEXT,
}

Row = dict[str, str | int | None]


def rows(report: Report) -> Iterator[Row]:
    """Every row, with every column; None where one does not apply."""
    period = report.scope.period
    common: Row = dict.fromkeys(COLUMNS)
    common |= {
        "period": period.label,
        "time_zone": period.time_zone,
        "start": iso_utc(period.start_ms),
        "end": iso_utc(period.end_ms),
    }
    for line in report.lines:
        usage, charges = line.usage, line.charges
        yield common | {
            "line": "reversal" if usage.reversal else "request",
            "tenant": usage.tenant,
            "model": usage.model or None,
            "outcome": usage.outcome or None,
            "status": usage.status,
            "evidence": usage.evidence or None,
            "price_id": line.entry.price_id if line.entry else None,
            "currency": report.prices.currency,
            "events": usage.events,
            "unrated": usage.unrated,
            "prompt": usage.tokens.prompt,
            "cached": usage.tokens.cached,
            "completion": usage.tokens.completion,
            "reasoning": usage.tokens.reasoning,
            "uncached_pico": charges.uncached,
            "cached_pico": charges.cached,
            "completion_pico": charges.completion,
            "reasoning_pico": charges.reasoning,
            "request_pico": charges.request,
            "rounding_pico": charges.rounding,
            "saved_pico": charges.saved,
            "amount_micro": charges.amount,
        }
    for adjustment in report.adjustments:
        yield common | {
            "line": adjustment.kind,
            "tenant": adjustment.tenant,
            "currency": adjustment.currency,
            "events": 1,
            "amount_micro": -adjustment.amount,
            "event_id": adjustment.event_id,
            "account": adjustment.account,
            "reason": adjustment.reason,
            "reference": adjustment.reference,
        }


def to_csv(report: Report) -> str:
    """With a header; a column that does not apply is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows(report))
    return out.getvalue()


def as_text(value: str | int | None) -> str | int | None:
    """For a CSV field: a spreadsheet takes text that begins so for a formula, and a client chooses its model's name.
    The quote in front is what spreadsheets themselves write for text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


ENTRY_COLUMNS = ("time", "event_id", "account", "currency", "amount_micro")


def entry_row(entry: Entry) -> tuple[str, str, str, str, int]:
    """One side of a movement, by ``ENTRY_COLUMNS``."""
    return iso_utc(entry.time_ms), entry.event_id, entry.account, entry.currency, entry.amount
