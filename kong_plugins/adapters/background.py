"""Work off a request's way, in greenlets beside it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import gevent
from gevent.event import Event

_log = logging.getLogger(__name__)


class GreenletQueue:
    """``Background`` over a bounded queue and a fixed number of greenlets, started when there is work.

    A task that raises is logged and forgotten; tasks that matter try again themselves (``pause``).
    """

    def __init__(self, name: str, *, workers: int = 1, capacity: int = 10_000) -> None:
        self._name = name
        self._workers = workers
        self._capacity = capacity
        self._tasks: deque[Callable[[], None]] = deque()
        self._running: set[gevent.Greenlet] = set()
        self._closing = Event()

    def __len__(self) -> int:
        """Tasks that no greenlet has begun."""
        return len(self._tasks)

    def submit(self, task: Callable[[], None]) -> bool:
        if self._closing.is_set():
            return False
        full = len(self._tasks) >= self._capacity
        if not full:
            self._tasks.append(task)
        # Also when it is full: a worker may have ended of a lack of memory before it began.
        self._running.difference_update([worker for worker in self._running if worker.dead])
        if len(self._running) < self._workers:
            worker = gevent.spawn(self._work)
            self._running.add(worker)
            worker.rawlink(self._running.discard)
        return not full

    def pause(self, seconds: float) -> bool:
        return not self._closing.wait(timeout=seconds)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is queued or running. False when ``timeout_s`` ran out."""
        gevent.joinall(list(self._running), timeout=timeout_s)
        return not self._running

    def close(self, timeout_s: float = 5.0) -> bool:
        """Take no more; let every queued task run once more, without pauses. False when some did not end in time."""
        self._closing.set()
        return self.join(timeout_s)

    def _work(self) -> None:
        try:
            while self._tasks:
                task = self._tasks.popleft()
                try:
                    task()
                except Exception:  # noqa: BLE001  # the next task is another request's
                    _log.exception("%s: a task failed", self._name)
        finally:
            # At once: a task that came before our end is told of would wait for nobody.
            self._running.discard(gevent.getcurrent())


class Every:
    """Runs a task in a greenlet of its own each so many seconds, from :meth:`start` to :meth:`stop`."""

    def __init__(self, seconds: float, task: Callable[[], None]) -> None:
        self._seconds = seconds
        self._task = task
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """A task under way is broken off."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            gevent.sleep(self._seconds)
            try:
                self._task()
            except Exception:  # noqa: BLE001  # the next time may be better
                _log.exception("a task that runs every %s s failed", self._seconds)


class Later:
    """Runs each task in a greenlet so many seconds after it was given, or when everything is flushed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[gevent.Greenlet, Callable[[], None]] = {}

    def submit(self, task: Callable[[], None]) -> None:
        waiting = gevent.Greenlet(self._run, task)
        self._waiting[waiting] = task
        waiting.start_later(self._seconds)

    def flush(self) -> None:
        """Run now what still waits; returns when it has."""
        while self._waiting:
            waiting, task = self._waiting.popitem()
            waiting.kill()
            self._do(task)

    def _run(self, task: Callable[[], None]) -> None:
        if self._waiting.pop(gevent.getcurrent(), None) is not None:
            self._do(task)

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception:  # noqa: BLE001  # the next task is another request's
            _log.exception("a task that was put off failed")
