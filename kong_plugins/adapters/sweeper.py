"""Ends the holds that nobody settled, also of tenants that never ask again."""

from __future__ import annotations

import logging

import gevent

from kong_plugins.application.ports import Ledger, LedgerUnavailable

_log = logging.getLogger(__name__)

# An operation of a tenant sweeps its own partition; this is for the partitions nobody asks anything of. A hold past its
# time counts for nothing meanwhile, so only its event waits: half a minute of a ledger's 64 short scripts is plenty.
SWEEP_S = 30.0


class Sweeper:
    """One greenlet for one ledger, from :meth:`start` to :meth:`stop`. Several processes may sweep the same ledger."""

    def __init__(self, ledger: Ledger, every_s: float = SWEEP_S) -> None:
        self._ledger = ledger
        self._every_s = every_s
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            gevent.sleep(self._every_s)
            try:
                ended = self._ledger.expire()
            except LedgerUnavailable as error:
                _log.warning("holds not swept, the ledger is out of reach: %s", error)
            else:
                if ended:
                    _log.warning(
                        "%d holds ended without anybody settling them: see their events (outcome expired)", ended
                    )
