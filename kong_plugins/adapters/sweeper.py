"""Ends the holds that nobody settled, also of tenants that never ask again."""

from __future__ import annotations

import logging

from kong_plugins.adapters.background import Every
from kong_plugins.application.ports import Ledger, LedgerUnavailable

_log = logging.getLogger(__name__)

# An operation of a tenant sweeps its own partition; this is for the partitions nobody asks anything of. A hold past its
# time counts for nothing meanwhile, so only its event waits: half a minute of a ledger's 64 short scripts is plenty.
SWEEP_S = 30.0


class Sweeper(Every):
    """Sweeps one ledger, from :meth:`start` to :meth:`stop`. Several processes may sweep the same ledger."""

    def __init__(self, ledger: Ledger, every_s: float = SWEEP_S) -> None:
        super().__init__(every_s, lambda: _sweep(ledger))


def _sweep(ledger: Ledger) -> None:
    try:
        ended = ledger.expire()
    except LedgerUnavailable as error:
        _log.warning("holds not swept, the ledger is out of reach: %s", error)
    else:
        if ended:
            _log.warning("%d holds ended without anybody settling them: see their events (outcome expired)", ended)
