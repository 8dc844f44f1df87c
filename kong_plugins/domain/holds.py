"""Holds: the upper bound kept at admission, and how it ends. A hold ends once: settled, released or expired.

A hold whose ``ttl_us`` is over LAPSES: its amounts leave the budget's ``held``, yet the hold stays, for its request may
still be streaming. A settle within the ledger's grace posts the real usage, once. When the grace is over too, the hold
ends as EXPIRED: nothing posted, evidence ``held``, its own event in the outbox. So every request has one terminal
posting and one event, whenever it is heard from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier
from kong_plugins.domain.budgets import TOKENS_MAX, Mode, Weights, check_units
from kong_plugins.domain.concurrency import Slots, SlotState
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import WindowSpec


@dataclass(frozen=True, slots=True)
class Line:
    """One budget's part of a hold.

    ``key`` identifies the counter within the tenant (budget name plus scope values, e.g. ``daily`` or
    ``daily|model=deepseek-r1``); it never holds the limit, so an edited budget keeps its count. ``amount`` is the bound
    in the budget's unit. Only HARD lines refuse; SOFT and SHADOW ones count and report ``short``.

    Raises:
        ValueError: limit or amount is negative or above what the ledger counts exactly.
    """

    key: str
    window: WindowSpec
    weights: Weights
    limit: int
    amount: int
    mode: Mode = Mode.HARD

    def __post_init__(self) -> None:
        check_units(f"the limit of {self.key!r}", self.limit)
        check_units(f"the amount of {self.key!r}", self.amount)


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """All lines are held or none. ``hold_id`` is the request id: asking again answers as the first time did, while
    the ledger remembers the hold (a refused request left none: asking again decides again).

    ``event`` is the billing event to write if nobody ever settles: outcome ``expired``, evidence ``held``, no usage.
    Without one the ledger writes ``default_expiry_event``.

    ``attempt``: the logical request that this is a try of, where the client may try again. ``slots``: of each one is
    taken too; where one has none free, nothing is held and no budget is looked at.

    Raises:
        ValueError: two lines count on one counter or two slots are the same, or the hold would end before it began.
    """

    tenant: str
    hold_id: str
    lines: tuple[Line, ...]
    ttl_us: int
    event: bytes = b""
    attempt: Attempt | None = None
    slots: tuple[Slots, ...] = ()

    def __post_init__(self) -> None:
        if self.ttl_us < 1:
            raise ValueError(f"a hold lasts at least a microsecond, not {self.ttl_us}")
        if len(self.slots) > 1 and len({each.key for each in self.slots}) < len(self.slots):
            raise ValueError(f"hold {self.hold_id!r} takes the same slots twice: give each limit its own key")
        if len(self.lines) > 1 and len({(line.key, line.window) for line in self.lines}) < len(self.lines):
            raise ValueError(f"two lines of hold {self.hold_id!r} share a counter: give each budget its own name")

    @property
    def expiry_event(self) -> bytes:
        return self.event or default_expiry_event(self.tenant, self.hold_id)


def default_expiry_event(tenant: str, hold_id: str) -> bytes:
    """What is known of a request that only its hold tells of."""
    known = {"id": hold_id, "tenant": tenant, "outcome": Outcome.EXPIRED, "evidence": Evidence.HELD}
    return json.dumps(known, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class LineState:
    """A budget's counter right after (or, when refused, at) the decision. All in the budget's unit.

    ``reset_us``, an absolute time: when the window ends (fixed); on a rolling window or a bucket, when the amount would
    fit if nothing else happened (``short``), else when all that counts now would be free again. Open holds free nothing
    by waiting, so where only they are in the way it is when they would be free if they were used up now.
    ``short``: the amount did not fit.
    """

    key: str
    limit: int
    committed: int
    held: int
    reset_us: int
    short: bool = False

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.committed - self.held)


@dataclass(frozen=True, slots=True)
class HoldOutcome:
    """``earlier``: not admitted, as an earlier attempt at the same logical request answers for it; no states then.
    ``slots``: one per slots asked for; no ``states`` where one of them is ``short``."""

    admitted: bool
    states: tuple[LineState, ...]  # one per line, in the request's order
    now_us: int  # the ledger's clock
    repeated: bool = False
    earlier: Earlier | None = None
    slots: tuple[SlotState, ...] = ()


@dataclass(frozen=True, slots=True)
class Registration:
    """A request that was admitted without the ledger, for it to hold after the event.

    ``at_us``: when, by the ledger's clock as the node knew it; its fixed windows are those of that time. ``lease_id``:
    whose lease it takes its amounts from; empty: nobody's, and it is held all the same (it runs already).
    """

    request: HoldRequest
    at_us: int
    lease_id: str = ""


class DecidedBy(StrEnum):
    """What admitted a request."""

    LEDGER = "ledger"
    LEASE = "lease"  # its node, out of what it had leased
    OPEN = "open"  # nobody: the ledger was away, and the operator lets requests through then


class HoldState(StrEnum):
    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class Outcome(StrEnum):
    """How a request ended, for its event."""

    COMPLETED = "completed"
    ABORTED = "aborted"  # the client went away
    FAILED = "failed"  # the engine or the way to it failed
    EXPIRED = "expired"  # no log phase ever told us
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a hold: real usage in, hold out, the event into the outbox, in one atomic step.

    ``event`` is the billing event's JSON without the lines' posted amounts; the ledger stores it as given.

    For a hold with an attempt: ``outcome`` tells whether a retry may run again; ``answer`` is the whole answer for
    retries, opaque to the ledger, with ``kept`` saying what became of it; ``reversal`` is the reversal event of
    ``event``, appended when, now or later, this attempt turns out not to be the one that is charged (without one it
    stays charged: counters and books shall not part). A settlement that finds the hold settled already still hands in
    its answer, where none is kept yet.

    ``registration``: of a request that was admitted without the ledger, for one that does not know of it.

    Raises:
        ValueError: more tokens than any request can have used.
    """

    tenant: str
    hold_id: str
    usage: Usage
    evidence: Evidence
    event: bytes
    outcome: Outcome = Outcome.COMPLETED
    reversal: bytes = b""
    answer: bytes = b""
    kept: AnswerKept = AnswerKept.NONE
    registration: Registration | None = None

    def __post_init__(self) -> None:
        if self.usage.total > TOKENS_MAX:
            raise ValueError(f"no request uses more than {TOKENS_MAX} tokens: {self.usage}")


class SettleStatus(StrEnum):
    POSTED = "posted"  # this call ended the hold
    REPEATED = "repeated"  # it had ended before; nothing changed
    UNKNOWN = "unknown"  # no such hold (never made, or forgotten long after its end); nothing changed


@dataclass(frozen=True, slots=True)
class SettleOutcome:
    """``reversed_id``: the attempt that this settlement reversed, which may be its own."""

    status: SettleStatus
    posted: tuple[tuple[str, int], ...] = ()  # (line key, amount) as posted, in units
    reversed_id: str | None = None
