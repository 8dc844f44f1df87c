"""Holds: the upper bound kept at admission, and how it ends. A hold ends once: settled, released or expired."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kong_plugins.domain.budgets import Mode, Weights
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import WindowSpec


@dataclass(frozen=True, slots=True)
class Line:
    """One budget's part of a hold.

    ``key`` identifies the counter within the tenant (budget name plus scope values, e.g. ``daily`` or
    ``daily|model=deepseek-r1``); it never holds the limit, so an edited budget keeps its count. ``amount`` is the bound
    in the budget's unit. Only HARD lines refuse; SOFT and SHADOW ones count and report ``short``.
    """

    key: str
    window: WindowSpec
    weights: Weights
    limit: int
    amount: int
    mode: Mode = Mode.HARD


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """All lines are held or none. ``hold_id`` is the request id: asking again answers as the first time did."""

    tenant: str
    hold_id: str
    lines: tuple[Line, ...]
    ttl_us: int


@dataclass(frozen=True, slots=True)
class LineState:
    """A budget's counter right after (or, when refused, at) the decision. All in the budget's unit.

    ``reset_us``: when the window ends (fixed), or when enough would be free again if nothing else happened
    (rolling, bucket); absolute time. ``short``: the amount did not fit.
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
    admitted: bool
    states: tuple[LineState, ...]  # one per line, in the request's order
    now_us: int  # the ledger's clock
    repeated: bool = False


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
    """

    tenant: str
    hold_id: str
    usage: Usage
    evidence: Evidence
    event: bytes


class SettleStatus(StrEnum):
    POSTED = "posted"  # this call ended the hold
    REPEATED = "repeated"  # it had ended before; nothing changed
    UNKNOWN = "unknown"  # no such hold (never made, or forgotten long after its end); nothing changed


@dataclass(frozen=True, slots=True)
class SettleOutcome:
    status: SettleStatus
    posted: tuple[tuple[str, int], ...] = ()  # (line key, amount) as posted, in units
