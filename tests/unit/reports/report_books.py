"""Small books for tests of reports: real events, through the real sink, in a real DuckDB file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.books.report_queries import ReportQueries
from kong_plugins.adapters.price_list import read_prices
from kong_plugins.adapters.sinks.duckdb_sink import DuckDBSink
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.report import Report, Scope, make_report
from kong_plugins.domain.events import (
    AdjustmentKind,
    Admitted,
    Ending,
    adjustment_event,
    adjustment_id,
    billing_event,
    reversal_event,
    reversal_id,
)
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.periods import day_period
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

PRICES = """\
currency: EUR
models:
  deepseek-r1:
    - {from: 2026-01-01, prompt: "0.55", cached: "0.14", completion: "2.19"}
    - {from: 2026-11-23, prompt: "1", cached: "0.5", completion: "3", reasoning: "4", request: "0.01"}
  "small-*":
    - {from: 2026-01-01, prompt: 0.1, completion: 0.2}
"""
SOURCE = "gateway-1"


def ms(text: str) -> int:
    """Epoch milliseconds of an ISO time with offset."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


NOON = ms("2026-11-22T12:00:00+00:00")


def request(
    event_id: str,
    tenant: str,
    usage: Usage = NO_USAGE,
    *,
    at_ms: int = NOON,
    model: str = "deepseek-r1",
    outcome: Outcome = Outcome.COMPLETED,
    evidence: Evidence = Evidence.EXACT,
    status: int = 200,
    first_ms: int = 100,
    whole_ms: int = 1000,
    reversed_too: bool = False,
    route: str | None = "v1",
    credential: str | None = "00112233aabbccdd",
) -> list[OutboxEntry]:
    """A request whose answer's last byte went out at ``at_ms``, and with it its reversal."""
    admitted = Admitted(event_id, tenant, model, SOURCE, 0, 0, credential=credential, route=route)
    started_ms = at_ms - whole_ms
    ending = Ending(
        endpoint="chat",
        status=status,
        started_ms=started_ms,
        first_ms=started_ms + first_ms,
        last_ms=at_ms,
        proxy_ms=first_ms // 2,
    )
    event = billing_event(admitted, ending, usage, evidence, outcome)
    entries = [OutboxEntry("1-0", event_id, event, (("daily", usage.total),))]
    if reversed_too:
        event = reversal_event(admitted, ending, usage, evidence)
        entries.append(OutboxEntry("2-0", reversal_id(event_id), event, (("daily", -usage.total),)))
    return entries


def adjustment(
    name: str,
    tenant: str,
    amount: int,
    *,
    currency: str = "EUR",
    kind: AdjustmentKind = AdjustmentKind.CREDIT,
    at_ms: int = NOON,
    reason: str = "incident of Tuesday",
    reference: str | None = None,
) -> list[OutboxEntry]:
    event_id = adjustment_id(name)
    event = adjustment_event(
        event_id=event_id,
        source="cli",
        time_ms=at_ms,
        tenant=tenant,
        kind=kind,
        amount=amount,
        currency=currency,
        account="goodwill",
        reason=reason,
        reference=reference,
    )
    return [OutboxEntry("3-0", event_id, event, ())]


def write_books(path: Path, entries: list[OutboxEntry]) -> Path:
    sink = DuckDBSink(path)
    try:
        rejected = sink.write(entries)
        assert rejected == ()
    finally:
        sink.close()
    return path


@contextmanager
def reading(path: Path) -> Iterator[ReportQueries]:
    with open_books(path, read_only=True, wait_s=5) as connection:
        yield ReportQueries(connection)


def report_of(
    path: Path, day: str = "2026-11-22", *, zone: str = "UTC", tenant: str | None = None, prices: str = PRICES
) -> Report:
    period = day_period(datetime.fromisoformat(day).date(), zone)
    with reading(path) as books:
        return make_report(books, read_prices(prices), Scope(period, tenant))


def golden() -> list[OutboxEntry]:
    """Two tenants' day, small enough to be worked out by hand (test_report_figures does, line by line)."""
    return [
        *request("r1", "acme", Usage(1000, 500, 400, 200)),
        *request("r2", "acme", Usage(1, 1), first_ms=200, whole_ms=3000),
        *request("r3", "acme", Usage(10, 3), reversed_too=True, outcome=Outcome.ABORTED, evidence=Evidence.CONTINUOUS),
        *request("r4", "acme", outcome=Outcome.FAILED, status=502),
        *request("r5", "acme", outcome=Outcome.DENIED, status=429),
        *request("r6", "acme", outcome=Outcome.DENIED, status=401),
        *request("r7", "acme", Usage(7, 9), model="unlisted"),
        *adjustment("a1", "acme", 500, reference="r1"),
        *request("r8", "zeta & co", Usage(2_000_000, 1_000_000), model="small-1"),
        *request("r9", "acme", Usage(100, 100), at_ms=ms("2026-11-23T00:00:00+00:00")),  # the next day
        *request("r0", "acme", Usage(100, 100), at_ms=ms("2026-11-21T23:59:59.999+00:00")),  # the day before
    ]
