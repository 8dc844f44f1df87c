"""Delivery: events from the outbox into one sink, each at least once. Sinks know an event by its id, so the effect is
that of once.

The order is the promise: written first, acknowledged after. Whatever ends in between is delivered again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kong_plugins.application.ports import LedgerUnavailable, OutboxEntry, Rejected, Sink, SinkUnavailable

_log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 0.25
BACK_OFF_MAX_S = 15.0  # A sink that was away for hours has its events within seconds of its return.
SUSPECTED_MAX = 6  # deliveries of which nobody heard again, the last ones of the entry alone
PROBE = 1  # what a sink that is away is tried with


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries to write. ``again``: they were delivered before. ``suspected``: the entry is alone, because it was
    delivered so often before and nobody heard of it again: whoever wrote it may have died of it."""

    entries: tuple[OutboxEntry, ...]
    again: bool = False
    suspected: int = 0


NOTHING = Batch(())


class Queue(Protocol):
    """A sink's place in the outbox. What was taken stays pending until it is acknowledged or buried, also through the
    end of the process; then somebody else gets it.

    Raises:
        LedgerUnavailable: from every method. What had effect is found again.
    """

    def take(self, count: int) -> Batch:
        """About ``count`` entries, nothing when there are none. Only when nothing taken before is still in hand."""

    def take_ahead(self, count: int) -> Batch:
        """About ``count`` new entries while a batch is in hand, from another thread; nothing when there are none, or
        when others are to go before them."""

    def acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        """The sink has them. Doing it again changes nothing."""

    def bury(self, rejected: Sequence[Rejected]) -> None:
        """The sink will never take them: to the dead letters, each once, in the same step as the acknowledgement."""

    def release(self, entries: Sequence[OutboxEntry], *, counted: bool) -> None:
        """The sink has not got them: anybody may have them now. ``counted``: they may be the reason."""


class State(StrEnum):
    STARTING = "starting"
    UP = "up"
    DOWN = "down"  # the sink is not available
    NO_LEDGER = "no ledger"
    STOPPED = "stopped"


@dataclass(slots=True)
class Progress:
    """What a delivery did so far. Written by its thread only; anybody may read it."""

    read: int = 0
    redelivered: int = 0
    written: int = 0
    acknowledged: int = 0
    rejected: int = 0
    batches: int = 0
    failures: int = 0  # writes that did not succeed
    state: State = State.STARTING
    problem: str = ""  # why it is not up


@dataclass(frozen=True, slots=True)
class Pace:
    """``batch``: about how many entries are written at once; twice as many are held in memory, for the next are read
    meanwhile. ``linger_s``: how long to wait after a batch that was not full, so that the next is larger."""

    batch: int = 5000
    linger_s: float = 0.2


@dataclass(slots=True)
class _Owed:
    """What the ledger is still to be told of a batch."""

    written: tuple[OutboxEntry, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    released: tuple[OutboxEntry, ...] = ()
    counted: bool = False

    def __bool__(self) -> bool:
        return bool(self.written or self.rejected or self.released)


class Delivery:
    """Moves entries from ``queue`` to the sink that ``open_sink`` opens, one batch at a time. For one thread, beside
    which it has one that reads ahead: the ledger's work and the sink's take each other's time otherwise.

    ``observe`` hears of each write: entries, seconds.
    """

    def __init__(
        self,
        name: str,
        queue: Queue,
        open_sink: Callable[[], Sink],
        pace: Pace,
        observe: Callable[[int, float], None] = lambda _entries, _seconds: None,
    ) -> None:
        self.name = name
        self.progress = Progress()
        self._queue = queue
        self._open_sink = open_sink
        self._pace = pace
        self._observe = observe
        self._sink: Sink | None = None
        self._owed = _Owed()
        self._back_off_s = 0.0  # the last pause after a failure; 0 after a success
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: Future[Batch] | None = None

    def run(self, wait: Callable[[float], bool]) -> None:
        """Until ``wait`` says False: that the process ends. A batch that was begun is written and acknowledged."""
        try:
            while wait(self.step()):
                pass
        finally:
            self.close()

    def step(self) -> float:
        """Take one batch, write it, acknowledge it. Returns the seconds to wait before the next."""
        try:
            self._pay()
            batch = self._next()
        except LedgerUnavailable as error:
            return self._failed(State.NO_LEDGER, f"the ledger is out of reach: {error}")
        if not batch.entries:
            if self.progress.state is State.NO_LEDGER:
                self._recovered()
            return self._back_off_s or self._pace.linger_s
        self.progress.read += len(batch.entries)
        if batch.again:
            self.progress.redelivered += len(batch.entries)
        if not batch.again and self._is_full(batch):
            self._read_ahead()
        pause_s = self._deliver(batch)
        try:
            self._pay()
        except LedgerUnavailable as error:
            return self._failed(State.NO_LEDGER, f"the ledger is out of reach: {error}")
        return pause_s

    def close(self) -> None:
        """What is owed to the ledger is tried once more; what it does not hear of is delivered again."""
        try:
            self._pay()
            self._give_back()
        except LedgerUnavailable as error:
            _log.warning("%s: the last batch was not acknowledged and will be delivered again: %s", self.name, error)
        self._close_sink()
        if self._reader is not None:
            self._reader.shutdown()
        self.progress.state = State.STOPPED

    def _next(self) -> Batch:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (batch := ahead.result()).entries:
            return batch
        return self._queue.take(PROBE if self._back_off_s else self._pace.batch)

    def _read_ahead(self) -> None:
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"ahead of {self.name}")
        self._ahead = self._reader.submit(self._queue.take_ahead, self._pace.batch)

    def _give_back(self) -> None:
        """What was read ahead is not going to be written now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (batch := ahead.result()).entries:
            self._queue.release(batch.entries, counted=False)

    def _is_full(self, batch: Batch) -> bool:
        return len(batch.entries) * 2 > self._pace.batch

    def _close_sink(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            sink.close()
        except Exception:  # noqa: BLE001 - nothing written is lost by it
            _log.exception("%s: closing failed", self.name)

    def _deliver(self, batch: Batch) -> float:
        entries = batch.entries
        if batch.suspected >= SUSPECTED_MAX:
            reason = f"delivered {batch.suspected} times, and whoever wrote it ended or failed each time"
            self._owed = _Owed(rejected=tuple(Rejected(each, reason) for each in entries))
            self.progress.rejected += len(entries)
            return 0.0
        began = time.monotonic()
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            rejected = self._sink.write(entries)
        except SinkUnavailable as error:
            self._owed = _Owed(released=entries)
            return self._failed(State.DOWN, str(error))
        except Exception as error:  # noqa: BLE001 - the thread must not end for it, and the entries are not lost
            # It may be this batch: its entries are counted, and tried one by one in the end. The sink is opened anew.
            _log.exception("%s: writing failed", self.name)
            self._close_sink()
            self._owed = _Owed(released=entries, counted=True)
            return self._failed(State.DOWN, f"{type(error).__name__}: {error}")
        self._observe(len(entries), time.monotonic() - began)
        self._recovered()
        refused = {each.entry.position for each in rejected}
        written = tuple(each for each in entries if each.position not in refused) if refused else entries
        self._owed = _Owed(written, rejected)
        self.progress.batches += 1
        self.progress.written += len(written)
        self.progress.rejected += len(rejected)
        for each in rejected:
            _log.warning("%s: %s goes to the dead letters: %s", self.name, each.entry.event_id, each.reason)
        return 0.0 if batch.again or self._is_full(batch) else self._pace.linger_s

    def _pay(self) -> None:
        owed = self._owed
        if not owed:
            return
        if owed.written:
            self._queue.acknowledge(owed.written)
            self.progress.acknowledged += len(owed.written)
            owed.written = ()
        if owed.rejected:
            self._queue.bury(owed.rejected)
            owed.rejected = ()
        if owed.released:
            self._give_back()
            self._queue.release(owed.released, counted=owed.counted)
            owed.released = ()

    def _failed(self, state: State, why: str) -> float:
        if self.progress.state is not state or self.progress.problem != why:
            _log.warning("%s: %s; events wait in the outbox", self.name, why)
        self.progress.state, self.progress.problem = state, why
        if state is State.DOWN:
            self.progress.failures += 1
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_MAX_S) or BACK_OFF_FIRST_S
        return self._back_off_s

    def _recovered(self) -> None:
        if self._back_off_s:
            _log.warning("%s: works again", self.name)
        self._back_off_s = 0.0
        self.progress.state, self.progress.problem = State.UP, ""
