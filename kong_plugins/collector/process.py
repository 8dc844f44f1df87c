"""A collector process: a thread for each sink, one that keeps house, and the HTTP side."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kong_plugins.adapters.outbox import GroupQueue, Outbox, SinkStatus, consumer_name
from kong_plugins.adapters.outbox.queue import SILENT_S
from kong_plugins.application.deliver import BACK_OFF_FIRST_S, BACK_OFF_MAX_S, Delivery, Pace, Progress, State
from kong_plugins.application.ports import Ledger, LedgerUnavailable, Sink
from kong_plugins.collector.metrics import Metrics
from kong_plugins.collector.periodic import PeriodicJob, run_periodically

_log = logging.getLogger(__name__)

KEEP_HOUSE_EVERY_S = 1.0
TIDY_EVERY_S = 60.0
EXPIRE_EVERY_S = 30.0
WARN_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class NamedSink:
    """``open`` is called in the thread that writes, and again after a write failed in a way nobody foresaw."""

    name: str
    open: Callable[[], Sink]


class Collector:
    """Runs from :meth:`start` to :meth:`stop`. ``keep_s``: how long entries stay that every sink has. ``jobs``: further
    periodic work, which may take its time."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        sinks: Sequence[NamedSink],
        *,
        pace: Pace,
        keep_s: float = 0.0,
        silent_s: float = SILENT_S,
        jobs: Sequence[PeriodicJob] = (),
        queue: type[GroupQueue] = GroupQueue,
    ) -> None:
        self.consumer = consumer_name()
        self._outbox = outbox
        self._ledger = ledger
        self._keep_s = keep_s
        self._ours = [sink.name for sink in sinks]
        self._stop = threading.Event()
        self._registered = threading.Event()
        self._status: tuple[SinkStatus, ...] = ()
        self._status_at = 0.0
        self._warned: dict[str, float] = {}
        self._jobs = (
            PeriodicJob("status and trim", KEEP_HOUSE_EVERY_S, self._keep_house),
            PeriodicJob("expire holds", EXPIRE_EVERY_S, self._expire),
            PeriodicJob("tidy consumers", TIDY_EVERY_S, self._tidy),
        )
        self._others = tuple(jobs)
        self._deliveries: list[Delivery] = []
        progress: dict[str, Progress] = {}
        self.metrics = Metrics(progress, lambda: self._status)
        for sink in sinks:
            place = queue(outbox.calls, sink.name, self.consumer, silent_s=silent_s)
            observe = partial(self.metrics.observe_write, sink.name)
            delivery = Delivery(sink.name, place, sink.open, pace, observe)
            progress[sink.name] = delivery.progress
            self._deliveries.append(delivery)
        self.progress = progress
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Returns at once; waits for the ledger, where it is away, in the background."""
        runs: list[tuple[str, Callable[[], None]]] = [("housekeeping", partial(self._run_jobs, self._jobs))]
        if self._others:
            runs.append(("other jobs", partial(self._run_jobs, self._others)))
        runs += [(f"sink {each.name}", partial(each.run, self._wait)) for each in self._deliveries]

        def after_registering(run: Callable[[], None]) -> None:
            self._registered.wait()
            if not self._stop.is_set():
                run()

        def register() -> None:
            try:
                self._register()
            finally:
                self._registered.set()

        self._threads = [threading.Thread(target=register, name="register", daemon=True)]
        self._threads += [
            threading.Thread(target=after_registering, args=(run,), name=name, daemon=True) for name, run in runs
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float = 30.0) -> bool:
        """Batches that were begun are written and acknowledged. False when that took too long: they are delivered
        again."""
        self._stop.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        in_time = not any(thread.is_alive() for thread in self._threads)
        try:
            for sink in self._ours:
                self._outbox.tidy(sink, self.consumer, leave=True)
            self._keep_house()
        except LedgerUnavailable as error:
            _log.warning("the ledger is out of reach at the end: %s", error)
        return in_time

    def ended(self) -> str:
        """The name of a part that ended although nobody asked it to; empty while all run."""
        if self._stop.is_set():
            return ""
        return next((each.name for each in self._threads[1:] if not each.is_alive()), "")

    def status(self) -> tuple[SinkStatus, ...]:
        """What the ledger last said, of every sink that has a position there; at most a second or two old."""
        return self._status

    def not_ready(self) -> str:
        """Why it is not; empty when it is. A sink that is away is no reason: taking it out of service helps nobody."""
        if not self._status_at:
            return "the ledger has not answered yet"
        if time.monotonic() - self._status_at > 10 * KEEP_HOUSE_EVERY_S:
            return "the ledger does not answer"
        return ""

    def drained(self) -> bool:
        """Whether every sink of ours has all that is in the outbox now.

        Raises:
            LedgerUnavailable: nobody knows.
        """
        return self._registered.is_set() and not any(
            each.behind for each in self._outbox.status() if each.sink in self._ours
        )

    def _wait(self, seconds: float) -> bool:
        return not self._stop.wait(seconds)

    def _register(self) -> None:
        """Every sink's position before anybody reads or trims: what one has had must not go before another is known."""
        pause_s = BACK_OFF_FIRST_S
        while not self._stop.is_set():
            try:
                self._outbox.register(self._ours)
            except LedgerUnavailable as error:
                _log.warning("the ledger is out of reach: %s", error)
                for each in self.progress.values():
                    each.state, each.problem = State.NO_LEDGER, str(error)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, BACK_OFF_MAX_S)
            else:
                return

    def _run_jobs(self, jobs: Sequence[PeriodicJob]) -> None:
        run_periodically(jobs, self._wait, self.metrics.count_failure)

    def _keep_house(self) -> None:
        self.metrics.count_trimmed(self._outbox.trim(self._keep_s))
        self._status = self._outbox.status()
        self._status_at = time.monotonic()
        for each in self._status:
            if each.sink not in self._ours and not each.attended and each.behind:
                self._warn(each)

    def _warn(self, status: SinkStatus) -> None:
        now = time.monotonic()
        if now - self._warned.get(status.sink, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned[status.sink] = now
            _log.warning(
                "no collector works for the sink %s: the outbox keeps %s events for it, and grows. Start one or,"
                " if it is no more: token-quota collector forget %s",
                status.sink,
                f"{status.behind:,}",
                status.sink,
            )

    def _expire(self) -> None:
        """Gateways do this too; here for the time when none runs."""
        if ended := self._ledger.expire():
            _log.warning("%d holds ended without anybody settling them: see their events (outcome expired)", ended)

    def _tidy(self) -> None:
        for sink in self._ours:
            self._outbox.tidy(sink, self.consumer)
