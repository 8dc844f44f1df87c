"""What one ledger's store outage modes need in a process, and what keeps them going beside the requests: the ledger is
told of what was admitted without it, and leases are renewed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import gevent
from gevent.event import Event

from kong_plugins.application.admit import AdmissionCounts
from kong_plugins.application.leasing import RENEW_S, WALK_S, LeasePolicy, Leases
from kong_plugins.application.outage import Closed, Leased, Open, Outage, StoreOutage
from kong_plugins.application.ports import Ledger, LedgerUnavailable
from kong_plugins.application.registering import Registrar

_log = logging.getLogger(__name__)

AGAIN_S = 0.25  # after the ledger did not answer: about as long as a restart takes


def together(tasks: Sequence[Callable[[], None]]) -> None:
    """In greenlets, so that what they ask the ledger leaves in one write."""
    if len(tasks) == 1:
        tasks[0]()
    else:
        gevent.joinall([gevent.spawn(task) for task in tasks])


def seconds() -> float:
    """A clock that goes on while the machine sleeps: the ledger does not wait for it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Loop:
    """Runs ``work`` when woken, and every ``every_s``; soon again where the ledger did not answer."""

    def __init__(self, what: str, work: Callable[[], None], every_s: float) -> None:
        self._what = what
        self._work = work
        self._every_s = every_s
        self._woken = Event()
        self._away = False
        self._greenlet: gevent.Greenlet | None = None
        self.wake = self._woken.set

    def start(self) -> None:
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            self._woken.wait(timeout=self._every_s)
            self._woken.clear()
            if not self._worked():
                gevent.sleep(AGAIN_S)

    def _worked(self) -> bool:
        try:
            self._work()
        except LedgerUnavailable as error:
            if not self._away:
                self._away = True
                _log.error("ledger out of reach, %s: %s", self._what, error)
            return False
        except Exception:  # noqa: BLE001  # the next time may be better
            _log.exception("%s: a round failed", self._what)
            return False
        if self._away:
            self._away = False
            _log.warning("ledger back: %s no longer", self._what)
        return True


class WithoutLedger:
    """One for each ledger. ``counts`` are of all rows that ask it. Works from the first mode that needs it to
    :meth:`stop`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._leases: list[Leases] = []
        self._modes: dict[tuple[StoreOutage, LeasePolicy], Outage] = {}
        # Apart: a request is told of at once, however long a renewal takes.
        self._telling = _Loop("requests run that it does not know of", self._tell, RENEW_S)
        self._leasing = _Loop("leases are not renewed", self._lease, WALK_S)
        self.registrar = Registrar(ledger, together, self._telling.wake)
        self.counts = AdmissionCounts()

    @property
    def leases(self) -> int:
        """Tenants that something is leased for."""
        return sum(map(len, self._leases))

    def mode(self, mode: StoreOutage, policy: LeasePolicy) -> Outage:
        """The same for every row that says the same."""
        if (mode, policy) not in self._modes:
            self._modes[mode, policy] = self._make(mode, policy)
        return self._modes[mode, policy]

    def _make(self, mode: StoreOutage, policy: LeasePolicy) -> Outage:
        if mode is StoreOutage.CLOSED:
            return Closed(self._give_back)
        self._telling.start()
        if mode is StoreOutage.OPEN:
            return Open(self.registrar, self._ledger.time_us, self._give_back)
        node = uuid4().hex[:16]
        leases = Leases(self._ledger, self.registrar, policy, node, seconds, self._leasing.wake, together, gevent.sleep)
        self._leases.append(leases)
        self._leasing.start()
        return Leased(leases, self.registrar, self._give_back)

    def stop(self) -> None:
        """Tells the ledger what is left, once, and gives the leases back; what it does not hear is told by settlements,
        and ends by its clock."""
        self._leasing.stop()
        self._telling.stop()
        try:
            self.registrar.work()
            for leases in self._leases:
                leases.close()
        except LedgerUnavailable as error:
            _log.warning("leases not given back, the ledger is out of reach: they end by themselves (%s)", error)

    def _give_back(self, tenant: str) -> bool:
        """Of every row's leases: what one keeps is no reason to refuse another's request."""
        given = [leases.give_back(tenant) for leases in self._leases]  # all of them, not the first that has any
        return any(given)

    def _tell(self) -> None:
        self.registrar.work()

    def _lease(self) -> None:
        failure: LedgerUnavailable | None = None
        for leases in self._leases:
            try:
                leases.work()
            except LedgerUnavailable as error:
                failure = error
        if failure is not None:
            raise failure
