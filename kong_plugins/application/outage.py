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

    def after(self, request: HoldRequest) -> Unasked | None:
        """It did not answer. None: refuse."""

    def flush(self, tenant: str) -> None:
        """The ledger is about to be asked about the tenant's earlier attempts: it shall know of all.

        Raises:
            LedgerUnavailable: it may not.
        """

    def give_back(self, tenant: str) -> bool:
        """The ledger found no room for a request: let it have what the node keeps unused. Whether there was any.

        Raises:
            LedgerUnavailable: nobody knows.
        """


class Closed:
    """Nothing runs that the ledger does not hold."""

    def before(self, request: HoldRequest) -> Unasked | None:
        """The ledger decides."""
        return None

    after = before

    def flush(self, tenant: str) -> None:
        """It knows everything."""

    def give_back(self, tenant: str) -> bool:
        """There is nothing."""
        return False


class Open:
    """No budget holds while the ledger is away; bills stay right. ``clock``: microseconds since the epoch."""

    def __init__(self, registrar: Registrar, clock: Callable[[], int]) -> None:
        self._registrar = registrar
        self._clock = clock

    def before(self, request: HoldRequest) -> Unasked | None:
        """The ledger decides, as long as it answers."""
        return None

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

    def give_back(self, tenant: str) -> bool:
        """There is nothing."""
        return False


class Leased:
    """Budgets hold while the ledger is away: what is left of them is what nodes have leased."""

    def __init__(self, leases: Leases, registrar: Registrar) -> None:
        self._leases = leases
        self._registrar = registrar

    def before(self, request: HoldRequest) -> Unasked | None:
        admitted = self._leases.admit(request)
        return None if admitted is None else Unasked(DecidedBy.LEASE, *admitted)

    after = before

    def flush(self, tenant: str) -> None:
        self._registrar.flush(tenant)

    def give_back(self, tenant: str) -> bool:
        return self._leases.give_back(tenant)
