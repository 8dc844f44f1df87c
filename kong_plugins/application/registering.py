"""Telling the ledger, after the event, of requests that were admitted without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kong_plugins.application.ports import Ledger, LedgerUnavailable
from kong_plugins.domain.holds import Registration

_log = logging.getLogger(__name__)

PENDING_MAX = 20_000  # some 3 kB each: minutes of an outage; beyond, nobody is admitted without the ledger
AT_A_TIME = 64  # asked for together; a failure is told by the first of them

Together = Callable[[Sequence[Callable[[], None]]], None]


def one_by_one(tasks: Sequence[Callable[[], None]]) -> None:
    """Runs tasks, which raise nothing, one after the other."""
    for task in tasks:
        task()


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
        self._pending: dict[str, _Pending] = {}
        self.late = 0  # that came too late to be held, since the process began

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def full(self) -> bool:
        return len(self._pending) >= PENDING_MAX

    def add(self, registration: Registration, told: Callable[[], None] = lambda: None) -> None:
        """``told`` is called when the ledger has it."""
        self._pending[registration.request.hold_id] = _Pending(registration, told)
        self._wake()

    def work(self) -> None:
        """Tell the ledger of everything that is pending, in the order it came.

        Raises:
            LedgerUnavailable: the rest is pending still.
        """
        while self._pending:
            self._tell(list(self._pending.values())[:AT_A_TIME])

    def flush(self, tenant: str) -> None:
        """Tell it of everything that is pending of a tenant, at once: a retry is to find its attempt.

        Raises:
            LedgerUnavailable: it may not know of all.
        """
        pending = [each for each in self._pending.values() if each.registration.request.tenant == tenant]
        for first in range(0, len(pending), AT_A_TIME):
            self._tell(pending[first : first + AT_A_TIME])

    def _tell(self, pending: Sequence[_Pending]) -> None:
        failures: list[LedgerUnavailable] = []
        self._together([lambda each=each: self._register(each, failures) for each in pending])  # type: ignore[misc]
        if failures:
            raise failures[0]

    def _register(self, pending: _Pending, failures: list[LedgerUnavailable]) -> None:
        hold_id = pending.registration.request.hold_id
        try:
            held = self._ledger.register(pending.registration)
        except LedgerUnavailable as error:
            failures.append(error)
            return
        if self._pending.get(hold_id) is not pending:
            return  # told by somebody else meanwhile
        del self._pending[hold_id]
        pending.told()
        if not held:
            self.late += 1
            _log.error("the ledger came back too late to hold %s: no budget is charged for it", hold_id)
