"""What admits without the store in a token-quota process, as adapters/without_ledger.py has it: greenlets and an event
there, tasks here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.without_ledger import AGAIN_S
from kong_plugins.application.leasing import RENEW_S, LeasePolicy, Leases
from kong_plugins.application.outage import Closed, Leased, Open, Outage, StoreOutage, Unasked
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.application.registering import Registrar
from kong_plugins.domain.holds import HoldRequest
from tests.simulation.kernel import Process, Task

if TYPE_CHECKING:
    from tests.simulation.world import World

MODES = {StoreOutage.LEASE: 6, StoreOutage.OPEN: 1, StoreOutage.CLOSED: 2}  # by how many processes have each
POLICY = LeasePolicy(percent=40, ttl_s=4)


class WithoutStore:
    """The mode is left to chance at each start."""

    def __init__(self, world: World, process: Process, ledger: Any, node: str) -> None:
        self._kernel = world.kernel
        self._process = process
        self._woken = False
        self._waiting: Task | None = None
        self._registrar = Registrar(ledger, self._together, self._wake)
        self._leases: Leases | None = None
        self.mode = world.kernel.random.choices(list(MODES), list(MODES.values()))[0]
        world.kernel.note("mode", process.name, self.mode)
        mode: Outage = Closed()
        if self.mode is StoreOutage.OPEN:
            mode = Open(self._registrar, lambda: world.kernel.now_us + world.node_skew_us[node])
        elif self.mode is StoreOutage.LEASE:
            world.lives += 1
            self._leases = Leases(
                ledger, self._registrar, POLICY, f"{node}-{world.lives}", world.kernel.monotonic, self._wake
            )
            mode = Leased(self._leases, self._registrar)
        self.outage = _Watched(mode, world, process)
        process.spawn(self._run)

    @property
    def idle(self) -> bool:
        return not self._registrar and not self._leases

    def _run(self) -> None:
        while True:
            if not self._woken:
                self._waiting = self._kernel.current
                self._kernel.park(round(RENEW_S * 1e6))
                self._waiting = None
            self._woken = False
            try:
                self._registrar.work()
                if self._leases is not None:
                    self._leases.work()
            except LedgerUnavailable:
                self._kernel.sleep(round(AGAIN_S * 1e6))

    def _wake(self) -> None:
        self._woken = True
        if self._waiting is not None:
            self._kernel.wake(self._waiting)

    def _together(self, tasks: Sequence[Callable[[], None]]) -> None:
        self._kernel.together(self._process, tasks)


class _Watched:
    """Each decision of a mode is looked at when it is made."""

    def __init__(self, mode: Outage, world: World, process: Process) -> None:
        self._mode = mode
        self._world = world
        self._process = process
        self.flush, self.give_back = mode.flush, mode.give_back

    def before(self, request: HoldRequest) -> Unasked | None:
        return self._seen(self._mode.before(request))

    def after(self, request: HoldRequest) -> Unasked | None:
        return self._seen(self._mode.after(request))

    def _seen(self, unasked: Unasked | None) -> Unasked | None:
        if unasked is not None:
            self._world.watch.leased.admitted(unasked, self._process)
            self._world.kernel.note(unasked.by, unasked.registration.request.hold_id, unasked.registration.lease_id)
        return unasked
