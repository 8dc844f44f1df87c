"""Double entry: every movement of money is written on two accounts, and what is written on all of them sums to zero."""

from __future__ import annotations

from dataclasses import dataclass

RECEIVABLE = "receivable:"  # + tenant: what the tenant owes
REVENUE = "revenue:"  # + model: what was earned with it
CONTRA = "contra:"  # + account of an adjustment: what it was given from


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of a movement. ``amount``: micro-units, positive a debit, negative a credit."""

    event_id: str
    time_ms: int
    account: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A credit, refund or correction. ``amount``: micro-units, positive in the tenant's favour. ``reference``: the
    event that it is about; ``reference_ms``: its time, where the books have it."""

    event_id: str
    time_ms: int
    tenant: str
    kind: str
    amount: int
    currency: str
    account: str
    reason: str
    reference: str | None = None
    reference_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Charged:
    """A rated event. ``amount``: micro-units, negative for a reversal."""

    event_id: str
    time_ms: int
    tenant: str
    model: str
    amount: int
    currency: str


def charge_entries(charged: Charged) -> tuple[Entry, Entry]:
    """The tenant owes it, the model earned it; a reversal's two the other way round."""
    return _both(charged, RECEIVABLE + charged.tenant, REVENUE + charged.model, charged.amount)


def adjustment_entries(adjustment: Adjustment) -> tuple[Entry, Entry]:
    """The tenant owes less, the contra account bears it."""
    return _both(adjustment, CONTRA + adjustment.account, RECEIVABLE + adjustment.tenant, adjustment.amount)


def _both(moved: Charged | Adjustment, debit: str, credit: str, amount: int) -> tuple[Entry, Entry]:
    return (
        Entry(moved.event_id, moved.time_ms, debit, amount, moved.currency),
        Entry(moved.event_id, moved.time_ms, credit, -amount, moved.currency),
    )
