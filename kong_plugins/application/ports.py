"""What the use cases need from outside. Adapters implement these; contract suites in tests/contract hold them to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, LineState, SettleOutcome, Settlement


class LedgerUnavailable(Exception):
    """The ledger did not answer in time, or refused. Whether the operation took effect is not known."""


@dataclass(frozen=True, slots=True)
class Balance:
    """A counter as an operator sees it."""

    tenant: str
    state: LineState
    window: str  # e.g. "fixed day Europe/Berlin 1", "rolling 3600", "bucket 60"
    mode: str


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One committed billing event, not yet acknowledged. ``posted`` is (line key, amount) as posted."""

    position: str
    event_id: str
    event: bytes
    posted: tuple[tuple[str, int], ...]


class Ledger(Protocol):
    """Budgets, holds, postings and outbox of every tenant. Every operation is atomic and idempotent by its id.

    Raises:
        LedgerUnavailable: from every method.
    """

    def hold(self, request: HoldRequest) -> HoldOutcome:
        """Hold every line or none."""

    def settle(self, settlement: Settlement) -> SettleOutcome:
        """Post real usage, drop the hold, append the event: once."""

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        """Lower an open hold's amounts (never raise). False when the hold is not open."""

    def peek(self, tenant: str, lines: Sequence[Line]) -> tuple[LineState, ...]:
        """The lines' counters now, changing nothing but what has expired."""

    def grant(self, tenant: str, line: Line, amount: int, reason: str, grant_id: str) -> LineState:
        """Post ``-amount`` to the line's current window (a negative grant takes away), as a posting with a reason."""

    def balances(self, tenant: str) -> tuple[Balance, ...]:
        """Every counter of a tenant with a live window."""

    def tenants(self) -> tuple[str, ...]:
        """Every tenant with a live counter, sorted."""

    def expire(self) -> int:
        """End every hold that is past its time, in all partitions. Returns how many."""

    def outbox(self, partition: int, after: str = "0", count: int = 100) -> tuple[OutboxEntry, ...]:
        """Events of a partition, oldest first, after a position."""


class TokenCounter(Protocol):
    """Exact token counts with a model's own tokenizer."""

    def count_text(self, model: str, text: str) -> int:
        """Tokens of plain text, without template or special tokens."""
