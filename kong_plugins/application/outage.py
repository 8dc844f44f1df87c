"""What becomes of requests that the ledger is not asked about, or does not answer: the store outage modes."""
# ruff: noqa: ARG002 (three modes, one interface)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kong_plugins.application.leasing import Leases
from kong_plugins.application.registering import Registrar
from kong_plugins.domain.holds import DecidedBy, HoldOutcome, HoldRequest, Registration


class StoreOutage(StrEnum):
    """The mode, as configured."""

    CLOSED = "closed"  # refuse
    OPEN = "open"  # let through without a look at any budget, and charge afterwards
    LEASE = "lease"  # let through what fits into what the node has leased, also while the ledger is there


@dataclass(frozen=True, slots=True)
class Unasked:
    """Admitted without the ledger. ``outcome`` has no states where nobody looked at the budgets."""

    by: DecidedBy
    outcome: HoldOutcome
    registration: Registration


class Outage(Protocol):
    """A mode at work. Only asked about requests that no earlier attempt can stand in the way of."""

    def before(self, request: HoldRequest) -> Unasked | None:
        """Before the ledger is asked. None: ask it."""

    def want(self, request: HoldRequest) -> None:
        """The ledger is asked in any case: be ready for requests like this one while it is away."""

    def after(self, request: HoldRequest) -> Unasked | None:
        """It did not answer. None: refuse."""

    def flush(self, tenant: str) -> None:
        """The ledger is about to be asked about the tenant's earlier attempts: it shall know of all.

        Raises:
            LedgerUnavailable: it may not.
        """

    def give_back(self, tenant: str) -> bool:
        """The ledger found no room for a request: let it have what this process keeps unused. Whether there was any.

        Raises:
            LedgerUnavailable: nobody knows.
        """


GiveBack = Callable[[str], bool]


class Closed:
    """Nothing runs that the ledger does not hold. ``give_back``: of leases that other rows have."""

    def __init__(self, give_back: GiveBack = lambda _: False) -> None:
        self._give_back = give_back

    def before(self, request: HoldRequest) -> Unasked | None:
        """The ledger decides."""
        return None

    after = before

    def want(self, request: HoldRequest) -> None:
        """Nobody is let in without it."""

    def flush(self, tenant: str) -> None:
        """It knows everything."""

    def give_back(self, tenant: str) -> bool:
        return self._give_back(tenant)


class Open(Closed):
    """No budget holds while the ledger is away; bills stay right. ``clock``: the ledger's, in microseconds."""

    def __init__(self, registrar: Registrar, clock: Callable[[], int], give_back: GiveBack = lambda _: False) -> None:
        super().__init__(give_back)
        self._registrar = registrar
        self._clock = clock

    def after(self, request: HoldRequest) -> Unasked | None:
        """The ledger will be told, unless there is too much to remember already."""
        if self._registrar.full:
            return None
        now_us = self._clock()
        registration = Registration(request, now_us)
        self._registrar.add(registration)
        return Unasked(DecidedBy.OPEN, HoldOutcome(True, (), now_us), registration)

    def flush(self, tenant: str) -> None:
        self._registrar.flush(tenant)


class Leased(Closed):
    """Budgets hold while the ledger is away: what is left of them is what nodes have leased."""

    def __init__(self, leases: Leases, registrar: Registrar, give_back: GiveBack | None = None) -> None:
        super().__init__(give_back or leases.give_back)
        self._leases = leases
        self._registrar = registrar

    def before(self, request: HoldRequest) -> Unasked | None:
        """What fits into the lease."""
        admitted = self._leases.admit(request)
        return None if admitted is None else Unasked(DecidedBy.LEASE, *admitted)

    after = before

    def want(self, request: HoldRequest) -> None:
        self._leases.want(request)

    def flush(self, tenant: str) -> None:
        self._registrar.flush(tenant)
