"""Leases: the part of a tenant's budgets that a node keeps for itself, to admit requests without asking the ledger.

A lease is held on the budget's counter like a request's hold, so committed tokens, open holds and leases together never
exceed a hard limit. A node admits a request against its lease and tells the ledger afterwards (``Registration``): the
request's bound then moves out of the lease into a hold of its own, and what is held stays the same. While the ledger is
away, nodes can so spend what they have leased, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from kong_plugins.domain.holds import Line, LineState

PERCENT_MAX = 50


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a node wants to have leased of a tenant's budgets from now on; of counters it does not name, nothing.

    A line's ``amount`` is the least it needs: what it has given to requests that the ledger does not know of yet, and
    what it may give away before the answer comes. It gets that, or ``percent`` of what is left of the budget with its
    own lease, whichever is more, as far as there is room; of a line that is not hard it gets nothing, but its state.
    ``lease_id`` is the node's, and its own; ``ttl_us``: when the ledger takes the lease back by itself. ``turn`` counts
    what was asked of this lease: a question that arrives again, or after a later one, changes nothing.

    Raises:
        ValueError: a percentage or time that makes no sense.
    """

    tenant: str
    lease_id: str
    lines: tuple[Line, ...]
    percent: int
    ttl_us: int
    turn: int

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= PERCENT_MAX:
            raise ValueError(f"a node leases 0 to {PERCENT_MAX} percent of what is left, not {self.percent}")
        if self.ttl_us < 1:
            raise ValueError(f"a lease lasts at least a microsecond, not {self.ttl_us}")


@dataclass(frozen=True, slots=True)
class LeasedLine:
    """``amount``: leased now. ``wanted``: what the percentage comes to, when the node asked for more than that.
    ``until_us``: when a fixed window ends, and its lease with it; None for the others. ``state`` includes the lease."""

    amount: int
    wanted: int
    until_us: int | None
    state: LineState


@dataclass(frozen=True, slots=True)
class LeaseOutcome:
    lines: tuple[LeasedLine, ...]  # one per line, in the request's order
    now_us: int  # the ledger's clock
