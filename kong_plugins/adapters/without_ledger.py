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
from kong_plugins.application.leasing import RENEW_S, LeasePolicy, Leases
from kong_plugins.application.outage import Closed, Leased, Open, Outage, StoreOutage
from kong_plugins.application.ports import Ledger, LedgerUnavailable
from kong_plugins.application.registering import Registrar

_log = logging.getLogger(__name__)

AGAIN_S = 0.25  # after the ledger did not answer: about as long as a restart takes
NODE = uuid4().hex[:16]  # this process, and none before it


def together(tasks: Sequence[Callable[[], None]]) -> None:
    """In greenlets, so that what they ask the ledger leaves in one write."""
    if len(tasks) == 1:
        tasks[0]()
    else:
        gevent.joinall([gevent.spawn(task) for task in tasks])


class WithoutLedger:
    """One for each ledger. ``counts`` are of all rows that ask it. Works from the first mode that needs it to
    :meth:`stop`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._woken = Event()
        self._registrar = Registrar(ledger, together, self._woken.set)
        self._leases: list[Leases] = []
        self._modes: dict[tuple[StoreOutage, LeasePolicy], Outage] = {}
        self._greenlet: gevent.Greenlet | None = None
        self._away = False
        self.counts = AdmissionCounts()

    @property
    def leases(self) -> int:
        """Tenants that something is leased for."""
        return sum(map(len, self._leases))

    @property
    def unregistered(self) -> int:
        """Requests that the ledger does not know of yet."""
        return len(self._registrar)

    def mode(self, mode: StoreOutage, policy: LeasePolicy) -> Outage:
        """The same for every row that says the same."""
        if (mode, policy) not in self._modes:
            self._modes[mode, policy] = self._make(mode, policy)
        return self._modes[mode, policy]

    def _make(self, mode: StoreOutage, policy: LeasePolicy) -> Outage:
        if mode is StoreOutage.CLOSED:
            return Closed()
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
        if mode is StoreOutage.OPEN:
            return Open(self._registrar, lambda: time.time_ns() // 1000)
        node = f"{NODE}.{len(self._leases)}"
        leases = Leases(self._ledger, self._registrar, policy, node, time.monotonic, self._woken.set)
        self._leases.append(leases)
        return Leased(leases, self._registrar)

    def stop(self) -> None:
        """Tells the ledger what is left, once, and gives the leases back; what it does not hear is told by settlements,
        and ends by its clock."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
        try:
            self._registrar.work()
            for leases in self._leases:
                leases.close()
        except LedgerUnavailable as error:
            _log.warning("leases not given back, the ledger is out of reach: they end by themselves (%s)", error)

    def _run(self) -> None:
        while True:
            self._woken.wait(timeout=RENEW_S)
            self._woken.clear()
            if not self._work():
                gevent.sleep(AGAIN_S)

    def _work(self) -> bool:
        try:
            self._registrar.work()
            for leases in self._leases:
                leases.work()
        except LedgerUnavailable as error:
            if not self._away:
                self._away = True
                _log.error("ledger out of reach, requests are admitted without it where the row says so: %s", error)
            return False
        except Exception:  # noqa: BLE001  # the next time may be better
            _log.exception("admitting without the ledger: a round failed")
            return False
        if self._away:
            self._away = False
            _log.warning("ledger back: it knows of everything that was admitted without it")
        return True
