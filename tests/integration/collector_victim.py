"""A collector process for tests: delivers to a file of lines, and kills itself (-9) at a given step of a given batch.

    python collector_victim.py LEDGER_URL FILE [--die STEP] [--batch N] [--poison ID] [--alone LOCK] [--until-empty]

Steps: taken, half, written, acknowledging, acknowledged. ``--poison``: writing that event kills. ``--alone``: its
sink works only while it has the lock. Prints "ready" before its first step.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from outbox_parts import Lines

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.outbox import GroupQueue, connect_outbox
from kong_plugins.application.deliver import Batch, Pace
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable
from kong_plugins.collector.process import Collector, NamedSink

DIE_IN_BATCH = 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingQueue(GroupQueue):
    """Dies after taking its third batch, or in the middle of acknowledging its second."""

    step = ""
    taken = 0
    acknowledged = 0

    def take(self, count: int) -> Batch:
        return self._counted(super().take(count))

    def take_ahead(self, count: int) -> Batch:
        return self._counted(super().take_ahead(count))

    def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        self.acknowledged += 1
        last = self.acknowledged == DIE_IN_BATCH
        if last and self.step == "acknowledging":
            super().acknowledge(entries[: len(entries) // 2])
            die()
        super().acknowledge(entries)
        if last and self.step == "acknowledged":
            die()

    def _counted(self, batch: Batch) -> Batch:
        self.taken += bool(batch.entries)
        if self.step == "taken" and self.taken > DIE_IN_BATCH:
            die()
        return batch


class DyingLines(Lines):
    """Dies half way through, or right after, its second batch."""

    def __init__(self, path: Path, step: str, poison: str | None, alone: Path | None) -> None:
        super().__init__(path)
        self._step, self._poison, self._alone = step, poison, alone
        self._lock: int | None = None
        self._batches = 0

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        if self._alone is not None and self._lock is None:
            self._lock = lock(self._alone)
        self._batches += 1
        if self._step == "half" and self._batches == DIE_IN_BATCH:
            super().write(entries[: len(entries) // 2])
            die()
        if any(entry.event_id == self._poison for entry in entries):
            die()
        rejected = super().write(entries)
        if self._step == "written" and self._batches == DIE_IN_BATCH:
            die()
        return rejected


def lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SinkUnavailable(f"another process has {path}") from error
    return descriptor


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger")
    parser.add_argument("file", type=Path)
    parser.add_argument("--die", default="")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--poison")
    parser.add_argument("--alone", type=Path)
    parser.add_argument("--until-empty", action="store_true")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def open_sink() -> DyingLines:
        return DyingLines(options.file, options.die, options.poison, options.alone)

    collector = Collector(
        connect_outbox(options.ledger),
        connect_ledger(options.ledger),
        [NamedSink("lines", open_sink)],
        pace=Pace(options.batch, 0.02),
        queue=DyingQueue,
    )
    DyingQueue.step = options.die
    print("ready", flush=True)
    collector.start()
    while not stop.wait(0.02):
        if options.until_empty and collector.drained():
            break
    return 0 if collector.stop() else 1


if __name__ == "__main__":
    sys.exit(main())
