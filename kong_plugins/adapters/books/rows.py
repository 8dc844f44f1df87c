"""An event as a row of the table ``events``: the same columns in DuckDB and in ClickHouse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.event_records import (
    EARLIEST,
    AdjustmentEvent,
    NotAnEvent,
    RequestEvent,
    ReversalEvent,
    read_entry,
)
from kong_plugins.application.ports import OutboxEntry, Rejected

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    *("id", "kind", "source", "time", "tenant", "model", "credential", "consumer", "service", "route", "endpoint"),
    *("stream", "prompt", "completion", "cached", "reasoning", "evidence", "outcome", "status", "upstream_status"),
    *("finish", "engine_id", "started_ms", "first_ms", "last_ms", "proxy_ms", "choices", "prompt_bound"),
    *("completion_bound", "budgets", "over", "attributes", "posted", "reverses", "amount", "currency", "account"),
    *("reason", "reference", "adjustment", "schema"),
)

Row = tuple[Any, ...]
"""Values by :data:`COLUMNS`. ``time``: epoch milliseconds; maps: lists of pairs."""


def rows_of(entries: Sequence[OutboxEntry]) -> tuple[list[Row], list[Rejected]]:
    """Rows of the entries, each event id once, and the entries that are no events of ours."""
    rows: dict[str, Row] = {}
    rejected: list[Rejected] = []
    for entry in entries:
        try:
            row = row_of(entry)
        except NotAnEvent as reason:
            rejected.append(Rejected(entry, str(reason)))
        else:
            rows.setdefault(row[0], row)
    return list(rows.values()), rejected


def row_of(entry: OutboxEntry) -> Row:
    """The event's row; counts of a reversal negative.

    Raises:
        NotAnEvent: as ``read_entry``.
    """
    event, posted = read_entry(entry)
    since = event.time - EARLIEST
    time_ms = since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000
    return _SHAPES[type(event)](event, time_ms, list(posted.items()))


def _request(event: RequestEvent, time_ms: int, posted: list[tuple[str, int]]) -> Row:
    data = event.data
    return (
        *(event.id, "request", event.source, time_ms, data.tenant, data.model, data.credential, data.consumer),
        *(data.service, data.route, data.endpoint, data.stream),
        *(data.prompt, data.completion, data.cached, data.reasoning, data.evidence, data.outcome, data.status),
        *(data.upstream_status, data.finish, data.engine_id),
        *(data.started_ms, data.first_ms, data.last_ms, data.proxy_ms),
        *(data.choices, data.prompt_bound, data.completion_bound),
        *(data.budgets, data.over, list(data.attributes.items()), posted),
        *(None, None, None, None, None, None, None, data.schema),
    )


def _reversal(event: ReversalEvent, time_ms: int, posted: list[tuple[str, int]]) -> Row:
    data = event.data
    return (
        *(event.id, "reversal", event.source, time_ms, data.tenant, data.model, data.credential, data.consumer),
        *(data.service, data.route, data.endpoint, None),
        *(-data.prompt, -data.completion, -data.cached, -data.reasoning, data.evidence, None, None),
        *(None, None, None),
        *(None, None, None, None),
        *(None, None, None),
        *(None, None, None, posted),
        *(data.reverses, None, None, None, data.reason, None, None, data.schema),
    )


def _adjustment(event: AdjustmentEvent, time_ms: int, posted: list[tuple[str, int]]) -> Row:
    data = event.data
    return (
        *(event.id, "adjustment", event.source, time_ms, data.tenant, None, None, None),
        *(None, None, None, None),
        *(0, 0, 0, 0, None, None, None),
        *(None, None, None),
        *(None, None, None, None),
        *(None, None, None),
        *(None, None, None, posted),
        *(None, data.amount, data.currency, data.account, data.reason, data.reference, data.kind, data.schema),
    )


_SHAPES: dict[type, Callable[[Any, int, list[tuple[str, int]]], Row]] = {
    RequestEvent: _request,
    ReversalEvent: _reversal,
    AdjustmentEvent: _adjustment,
}


def arrow_table(rows: Sequence[Row]) -> pa.Table:
    """The rows as DuckDB takes them in bulk; at least one."""
    import pyarrow as pa

    columns = zip(*rows, strict=True)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _arrow_types(), strict=True)]
    return pa.Table.from_arrays(arrays, names=list(COLUMNS))


@cache
def _arrow_types() -> tuple[pa.DataType, ...]:
    import pyarrow as pa

    text, whole, small = pa.string(), pa.int64(), pa.int32()
    other = {
        "time": pa.timestamp("ms"),
        "stream": pa.bool_(),
        **dict.fromkeys(("prompt", "completion", "cached", "reasoning", "amount"), whole),
        **dict.fromkeys(("started_ms", "first_ms", "last_ms", "proxy_ms", "prompt_bound", "completion_bound"), whole),
        **dict.fromkeys(("status", "choices", "schema"), small),
        **dict.fromkeys(("budgets", "over"), pa.list_(text)),
        "attributes": pa.map_(text, text),
        "posted": pa.map_(text, whole),
    }
    return tuple(other.get(column, text) for column in COLUMNS)
