"""Events as the outbox has them, read strictly: what is no event of ours is told apart, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.events import ADJUSTMENT_TYPE, EVENT_TYPE, REVERSAL_TYPE, SCHEMA_VERSION

Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Amount = Annotated[int, Meta(ge=-(2**63) + 1, le=2**63 - 1)]
Moment = Annotated[datetime, Meta(tz=True)]
Evidences = Literal["exact", "continuous", "tokenized", "held"]  # as domain.usage.Evidence
Outcomes = Literal["completed", "aborted", "failed", "expired", "denied"]  # as domain.holds.Outcome
Admitters = Literal["lease", "open"]  # as domain.holds.DecidedBy, but for the ledger
AdjustmentKinds = Literal["credit", "refund", "correction"]

# What every store of ours can hold; ClickHouse's DateTime64 and Arrow's nanoseconds end before the year 2300.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2250, 1, 1, tzinfo=UTC)
_INT64 = range(-(2**63), 2**63)


class NotAnEvent(ValueError):  # noqa: N818 - what it is, not an accident
    """No event that this version can book. The message says why, and what to do where something can be done."""


class RequestData(Struct, frozen=True, gc=False):
    """``data`` of a request's event. Times are epoch milliseconds."""

    schema: Small
    tenant: str  # empty: refused before anybody was named
    model: str
    stream: bool
    prompt: Count
    completion: Count
    cached: Count
    reasoning: Count
    evidence: Evidences
    outcome: Outcomes
    status: Small
    started_ms: Count
    credential: str | None = None
    consumer: str | None = None
    service: str | None = None
    route: str | None = None
    endpoint: str | None = None
    upstream_status: str | None = None
    finish: str | None = None
    engine_id: str | None = None
    first_ms: Count | None = None
    last_ms: Count | None = None
    proxy_ms: Count | None = None
    choices: Small | None = None
    admitted_by: Admitters | None = None
    prompt_bound: Count | None = None
    completion_bound: Count | None = None
    budgets: list[str] = []
    over: list[str] = []
    attributes: dict[str, str] = {}


class ReversalData(Struct, frozen=True, gc=False):
    """``data`` of a reversal. Counts are positive: what is to be subtracted."""

    schema: Small
    reverses: Name
    tenant: Name
    model: str
    prompt: Count
    completion: Count
    cached: Count
    reasoning: Count
    evidence: Evidences
    reason: str
    credential: str | None = None
    consumer: str | None = None
    service: str | None = None
    route: str | None = None
    endpoint: str | None = None


class AdjustmentData(Struct, frozen=True, gc=False):
    """``data`` of an adjustment. ``amount``: micro-units of the currency, positive in the tenant's favour."""

    schema: Small
    tenant: Name
    kind: AdjustmentKinds
    amount: Amount
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    account: Name
    reason: Name
    reference: str | None = None


class RequestEvent(Struct, frozen=True, gc=False, tag_field="type", tag=EVENT_TYPE):
    """A request, whatever became of it."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    time: Moment
    data: RequestData


class ReversalEvent(Struct, frozen=True, gc=False, tag_field="type", tag=REVERSAL_TYPE):
    """A charge taken back because a retry was charged in its place."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    time: Moment
    data: ReversalData


class AdjustmentEvent(Struct, frozen=True, gc=False, tag_field="type", tag=ADJUSTMENT_TYPE):
    """A credit, refund or correction by an operator."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    time: Moment
    data: AdjustmentData


Event = RequestEvent | ReversalEvent | AdjustmentEvent
_decode: Callable[[bytes], Event] = msgspec.json.Decoder(Event).decode


class _AnyData(Struct, frozen=True):
    schema: object = None


class _AnyEvent(Struct, frozen=True):
    data: _AnyData = _AnyData()
    type: object = None


_decode_any = msgspec.json.Decoder(_AnyEvent).decode


def read_event(event: bytes) -> Event:
    """One CloudEvents JSON object, UTF-8, as :mod:`kong_plugins.domain.events` writes them. Fields we do not know are
    left out.

    Raises:
        NotAnEvent: malformed, of another type, of a newer schema, or with values that cannot be.
    """
    try:
        record = _decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnEvent(_why_not(event, error)) from None
    data = record.data
    if data.schema != SCHEMA_VERSION:
        raise NotAnEvent(_other_schema(data.schema))
    if not EARLIEST <= record.time < LATEST:
        raise NotAnEvent(f"time {record.time.isoformat()} is not between {EARLIEST.year} and {LATEST.year}")
    if isinstance(data, AdjustmentData):
        return record
    if data.cached > data.prompt:
        raise NotAnEvent(f"cached tokens are part of the prompt: {data.cached} of {data.prompt}")
    if data.reasoning > data.completion:
        raise NotAnEvent(f"reasoning tokens are part of the completion: {data.reasoning} of {data.completion}")
    return record


def read_entry(entry: OutboxEntry) -> tuple[Event, dict[str, int]]:
    """The event of an outbox entry, and what the ledger posted of it: units by line key.

    Raises:
        NotAnEvent: as :func:`read_event`; or its id is not the one that the outbox knows it by, or a posting is beyond
            64 bits.
    """
    event = read_event(entry.event)
    if event.id != entry.event_id and event.id != _clean(entry.event_id):
        raise NotAnEvent(f"the outbox names it {entry.event_id!r}, the event itself {event.id!r}")
    posted: dict[str, int] = {}
    for line, units in entry.posted:
        key = line if line.isascii() else _clean(line)
        posted[key] = posted.get(key, 0) + units
        if posted[key] not in _INT64:
            raise NotAnEvent(f"{posted[key]} units posted to {key!r} are beyond 64 bits")
    return event, posted


def _clean(text: str) -> str:
    """Bytes that were no UTF-8 are lone surrogates in what the ledger tells, and replaced in events: no store and no
    reader of ours has to accept them."""
    return text.encode("utf-8", "replace").decode()


def _why_not(event: bytes, error: Exception) -> str:
    """A newer schema may look malformed to us, so its number is looked for first."""
    try:
        known = _decode_any(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"no JSON event: {error}"
    schema = known.data.schema
    if known.type in {EVENT_TYPE, REVERSAL_TYPE, ADJUSTMENT_TYPE} and isinstance(schema, int):
        if schema != SCHEMA_VERSION:
            return _other_schema(schema)
        return f"no event of schema {SCHEMA_VERSION}: {error}"
    return f"no event of ours: {error}"


def _other_schema(schema: int) -> str:
    if schema > SCHEMA_VERSION:
        return (
            f"schema {schema} is newer than {SCHEMA_VERSION}, the newest this version knows:"
            " upgrade whatever writes to this sink, then replay the dead letters"
        )
    return f"there is no schema {schema}; the first is 1"
