"""Jobs that come back every so often, one after the other in one thread: none may take long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kong_plugins.application.ports import LedgerUnavailable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """``run`` every ``every_s`` seconds, first at once. What it raises is logged and counted; it runs again."""

    name: str
    every_s: float
    run: Callable[[], None]


def run_periodically(
    jobs: Sequence[PeriodicJob], wait: Callable[[float], bool], failed: Callable[[str], None] = lambda _job: None
) -> None:
    """Until ``wait(seconds)`` says False. ``failed`` hears the name of a job that raised."""
    due = {job.name: 0.0 for job in jobs}
    going = True
    while going:
        now = time.monotonic()
        for job in jobs:
            if due[job.name] <= now:
                _run(job, failed)
                due[job.name] = time.monotonic() + job.every_s
        going = wait(max(0.0, min(due.values()) - time.monotonic()) if due else 60.0)


def _run(job: PeriodicJob, failed: Callable[[str], None]) -> None:
    try:
        job.run()
    except LedgerUnavailable as error:
        failed(job.name)
        _log.warning("%s: the ledger is out of reach: %s", job.name, error)
    except Exception:  # noqa: BLE001 - the other jobs go on, and this one has its next turn
        failed(job.name)
        _log.exception("%s failed", job.name)
