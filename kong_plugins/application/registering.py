"""Telling the ledger, after the event, of requests that were admitted without it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kong_plugins.application.ports import Ledger, LedgerUnavailable
from kong_plugins.domain.holds import Registration
from kong_plugins.domain.partitions import partition_of

_log = logging.getLogger(__name__)

PENDING_MAX = 50_000  # some 1.5 kB each: minutes of an outage; beyond, nobody is admitted without the ledger
AT_A_TIME = 64  # questions under way

Task = Callable[[], None]
Together = Callable[[Sequence[Task]], None]


def one_by_one(tasks: Sequence[Task]) -> None:
    """Runs tasks, which raise nothing, one after the other."""
    for task in tasks:
        task()


def for_each_tenant(tasks: Iterable[tuple[str, Task]], together: Together) -> None:
    """Run tenants' tasks, so many at a time. What comes behind one that failed in its partition is left for another
    time: a node of a Cluster that is gone must not hold up the tenants of the others, nor each of its own wait in vain.

    Raises:
        LedgerUnavailable: of the first that failed, when all others have run.
    """
    waiting: dict[int, deque[Task]] = {}
    for tenant, task in tasks:
        waiting.setdefault(partition_of(tenant), deque()).append(task)
    failures: dict[int, LedgerUnavailable] = {}

    def run(partition: int, task: Task) -> None:
        try:
            task()
        except LedgerUnavailable as error:
            failures.setdefault(partition, error)

    while waiting:
        share = max(1, AT_A_TIME // len(waiting))
        batch = [
            (partition, queue.popleft()) for partition, queue in waiting.items() for _ in range(min(share, len(queue)))
        ]
        together([lambda each=each: run(*each) for each in batch])  # type: ignore[misc]
        waiting = {partition: queue for partition, queue in waiting.items() if queue and partition not in failures}
    if failures:
        raise next(iter(failures.values()))


@dataclass(frozen=True, slots=True)
class _Pending:
    registration: Registration
    told: Callable[[], None]


class Registrar:
    """Keeps registrations until the ledger has them. For one thread, whose greenlets may all use it.

    ``together`` runs tasks, which raise nothing, and returns when all have ended. ``wake``: there is something to do,
    see :meth:`work`. What a crash takes from here is told by the request's settlement, which brings its registration.
    """

    def __init__(
        self, ledger: Ledger, together: Together = one_by_one, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._ledger = ledger
        self._together = together
        self._wake = wake
        self._pending: dict[str, dict[str, _Pending]] = {}  # by tenant and hold
        self._count = 0
        self.late = 0  # that came too late to be held, since the process began

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count >= PENDING_MAX

    def add(self, registration: Registration, told: Callable[[], None] = lambda: None) -> None:
        """``told`` is called when the ledger has it."""
        request = registration.request
        self._pending.setdefault(request.tenant, {})[request.hold_id] = _Pending(registration, told)
        self._count += 1
        self._wake()

    def work(self) -> None:
        """Tell the ledger of everything that is pending now, each tenant's in the order it came.

        Raises:
            LedgerUnavailable: some is pending still.
        """
        for_each_tenant(
            [(tenant, self._task(each)) for tenant, held in self._pending.items() for each in held.values()],
            self._together,
        )

    def flush(self, tenant: str) -> None:
        """Tell it of everything that is pending of a tenant, at once: a retry is to find its attempt.

        Raises:
            LedgerUnavailable: it may not know of all.
        """
        pending = self._pending.get(tenant, {})
        for_each_tenant([(tenant, self._task(each)) for each in pending.values()], self._together)

    def _task(self, pending: _Pending) -> Task:
        return lambda: self._register(pending)

    def _register(self, pending: _Pending) -> None:
        held = self._ledger.register(pending.registration)
        request = pending.registration.request
        of_tenant = self._pending.get(request.tenant, {})
        if of_tenant.get(request.hold_id) is not pending:
            return  # told by somebody else meanwhile
        del of_tenant[request.hold_id]
        if not of_tenant:
            del self._pending[request.tenant]
        self._count -= 1
        pending.told()
        if not held:
            self.late += 1
            _log.error("the ledger came back too late to hold %s: no budget is charged for it", request.hold_id)
