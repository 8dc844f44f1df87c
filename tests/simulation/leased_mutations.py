"""Bugs to plant in what admits without the ledger; see mutations.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.memory_leases import Lease
from kong_plugins.adapters.ledger.memory_ledger import MemoryLedger
from kong_plugins.application import leasing
from kong_plugins.application.leasing import Leases

Patch = tuple[object, str, Any]


def any_turn() -> Sequence[Patch]:
    lease, turns = MemoryLedger.lease, itertools.count(10**9)
    return [(MemoryLedger, "lease", lambda self, request: lease(self, replace(request, turn=next(turns))))]


def held_beside() -> Sequence[Patch]:
    return [(Lease, "move", lambda self, path, amount: 0)]


def given_for_nothing() -> Sequence[Patch]:
    admit = Leases.admit

    def wrong(self: Leases, request: Any) -> Any:
        admitted = admit(self, request)
        if admitted is not None:
            for part in self._tenants[request.tenant].slices.values():
                part.used = 0
        return admitted

    return [(Leases, "admit", wrong)]


def after_its_window() -> Sequence[Patch]:
    return [(leasing, "_current", lambda part, now_us: part.leased is not None)]


def after_its_time() -> Sequence[Patch]:
    ready = Leases._ready

    def wrong(self: Leases, request: Any) -> Any:
        tenant = self._tenants.get(request.tenant)
        if tenant is not None and tenant.told_us:
            tenant.until_s = self._clock() + 1
        return ready(self, request)

    return [(Leases, "_ready", wrong)]


def held_again() -> Sequence[Patch]:
    register = MemoryLedger.register

    def wrong(self: MemoryLedger, registration: Any) -> bool:
        name = layout.member(registration.request.tenant, registration.request.hold_id)
        known = self._holds.get(name)
        if known is not None and known.state != "open":
            del self._holds[name]
            self._forgotten[:] = [each for each in self._forgotten if each[1] != name]
        return register(self, registration)

    return [(MemoryLedger, "register", wrong)]
