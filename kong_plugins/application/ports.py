"""What the use cases need from outside. Adapters implement these; contract suites in tests/contract hold them to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, LineState, Registration, Settlement, SettleOutcome
from kong_plugins.domain.leases import LeaseOutcome, LeaseRequest
from kong_plugins.domain.shares import EngineShare, PlaceState


class LedgerUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """The ledger did not answer in time, or refused. Whether the operation took effect is not known."""


class LedgerFault(LedgerUnavailable):
    """It answered, with an error that waiting does not mend: a wrong password, say. It is not away, so nothing is let
    in that only an outage lets in."""


@dataclass(frozen=True, slots=True)
class Balance:
    """A counter as an operator sees it."""

    tenant: str
    state: LineState
    window: str  # e.g. "fixed day Europe/Berlin 1", "rolling 3600", "bucket 60"
    mode: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A posting an operator made. ``amount`` is what the tenant gained, in the budget's unit."""

    grant_id: str
    line: str
    amount: int
    reason: str
    at_us: int


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

    def time_us(self) -> int:
        """The ledger's clock, as last heard and gone on since; ours while nothing was heard. Asks nobody."""

    def hold(self, request: HoldRequest) -> HoldOutcome:
        """Hold every line or none. With an attempt, first look at the logical request's earlier attempts: one that
        runs, has finished or was for something else answers in this one's place (``HoldOutcome.earlier``); one that was
        aborted, failed or expired, or whose answer was lost in a crash, lets it run. With slots, one of each is taken
        too; where one has none free, nothing else is looked at."""

    def settle(self, settlement: Settlement) -> SettleOutcome:
        """Post real usage, drop the hold, append the event: once. Usage above the hold is posted as it is. With an
        attempt: of this one and the one charged so far, the cheaper (by total tokens) is reversed in the same step."""

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        """Lower an open hold's amounts by line key (never raise). False when the hold is not open. Where nothing is
        held any more, nobody may ever settle it: it no longer stands in the way of a retry and gives its slots back."""

    def lease(self, request: LeaseRequest) -> LeaseOutcome:
        """Make a node's lease of a tenant's budgets what it asks for, as far as there is room."""

    def register(self, registration: Registration) -> bool:
        """Hold what was admitted without the ledger, whatever there is room for: out of the node's lease, and on top of
        it what that has not got. Once: where the hold is, or has been, nothing changes. False: so late that its end may
        have been forgotten; nothing changes either."""

    def peek(self, tenant: str, lines: Sequence[Line]) -> tuple[LineState, ...]:
        """The lines' counters now, changing nothing but what has expired."""

    def grant(self, tenant: str, line: Line, amount: int, reason: str, grant_id: str) -> LineState:
        """Post ``-amount`` to the line's current window (a negative grant takes away), as a posting with a reason.
        A repeated ``grant_id`` changes nothing. A grant ends with its window; in a bucket it stays until it is used."""

    def reset(self, tenant: str, line: Line, reason: str, grant_id: str) -> LineState:
        """Grant exactly what the line's current window has committed. Open holds stay and settle as ever."""

    def grants(self, tenant: str, count: int = 100) -> tuple[Grant, ...]:
        """The latest grants and resets of a tenant, newest first."""

    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        """Append the event of a request that held nothing (denied, not budgeted). False: it has its event already."""

    def balances(self, tenant: str) -> tuple[Balance, ...]:
        """Every counter of a tenant with a live window, by line key."""

    def tenants(self) -> tuple[str, ...]:
        """Every tenant with a live counter, sorted."""

    def expire(self) -> int:
        """Let holds past their time lapse and end those past their grace, in all partitions. Returns how many ended."""

    def outbox(self, partition: int, after: str = "0", count: int = 100) -> tuple[OutboxEntry, ...]:
        """Events of a partition, oldest first, after a position."""


class EnginePlaces(Protocol):
    """The places of engines, which all their tenants share (:mod:`kong_plugins.domain.shares`). A request's is
    (tenant, hold id). Each is a lease: free again when nobody has vouched for it for ``LEASE_US``.

    Raises:
        LedgerUnavailable: from every method.
    """

    def enter(self, share: EngineShare, tenant: str, hold_id: str) -> PlaceState:
        """Take a place, where :func:`~kong_plugins.domain.shares.may_enter`. Whoever has one is admitted again."""

    def leave(self, key: str, requests: Sequence[tuple[str, str]]) -> int:
        """Give places back. Returns how many were taken; the others change nothing."""

    def renew(self, key: str, requests: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Vouch for places once more. Returns those that are gone, and stay so."""


class SinkUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """The sink took nothing, or nobody knows how much: everything is to be written again, later."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that a sink will never take, and why. For the dead letters."""

    entry: OutboxEntry
    reason: str


class Sink(Protocol):
    """Where billing events go. Writing an event again, in any order or company, has the effect of writing it once."""

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """When it returns, every entry that is not among the rejected is durable there.

        Raises:
            SinkUnavailable: try all of them again.
        """

    def close(self) -> None:
        """Give back what is open. Nothing written is lost by not calling it."""


class TokenCounter(Protocol):
    """Exact token counts with a model's own tokenizer."""

    def count_text(self, model: str, text: str) -> int:
        """Tokens of plain text, without template or special tokens."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The event of a request that held nothing, for :meth:`Ledger.record`."""

    tenant: str
    event_id: str
    event: bytes


Posting = Settlement | Recording


class SpoolUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """The spool took nothing: it is full, its disk is, or it is closing. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A posting that waits. ``position`` is the spool's name for it; ``failures`` counts how often the ledger took
    others and not this one."""

    position: tuple[int, int]
    posting: Posting
    failures: int = 0


class Spool(Protocol):
    """Postings that the ledger could not take yet, on this machine's disk. What is appended is there again after a
    crash; what an ended process left is taken over by another (``adopt``).

    Raises:
        SpoolUnavailable: from every method but ``close``.
    """

    @property
    def waiting(self) -> int:
        """Postings not deferred."""

    @property
    def depth(self) -> int:
        """All postings that are still to be tried: waiting and deferred."""

    def append(self, posting: Posting) -> None:
        """Durable when it returns."""

    def oldest(self, count: int) -> tuple[Spooled, ...]:
        """Postings not deferred, in the order they came."""

    def due(self, count: int) -> tuple[Spooled, ...]:
        """Deferred postings whose time has come, and which are not set aside."""

    def remove(self, entries: Sequence[Spooled]) -> None:
        """They are in the ledger."""

    def defer(self, entry: Spooled, reason: str, seconds: float | None) -> None:
        """Let the others pass and count a failure; not to be tried again for ``seconds``. None: set aside, for an
        operator to look at."""

    def adopt(self) -> None:
        """Take over what processes that are gone have left, and give back what is drained."""

    def close(self) -> None:
        """What waits stays for the next process."""


class Background(Protocol):
    """Work off a request's way: bounded, first in first out."""

    def submit(self, task: Callable[[], None]) -> bool:
        """Run ``task`` soon. False, and nothing will run, when the queue is full or closing."""

    def pause(self, seconds: float) -> bool:
        """For a running task: wait before trying again. False at once when the queue is closing."""
