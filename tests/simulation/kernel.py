"""Time, chance and processes of a simulated world. Tasks are greenlets that one hub resumes in the order of a heap, so
that a seed alone decides what happens; a process is killed by ending its tasks wherever they wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Any

import greenlet

TAIL = 60  # of the trace, kept for a failure


class Killed(BaseException):
    """Thrown into the tasks of a process that is gone: nothing of it runs any further."""


class Gone(Exception):  # noqa: N818 - a state, not a fault
    """Who was asked is no more, or is not there."""


class Violation(AssertionError):  # noqa: N818 - what it is
    """A promise did not hold."""


class Task:
    __slots__ = ("done", "greenlet", "killed", "process", "result", "started", "token", "waiters")

    def __init__(self, process: Process, run: Callable[[], Any], hub: greenlet.greenlet) -> None:
        self.process = process
        self.done = self.killed = self.started = False
        self.result: Any = None
        self.token = 0
        self.waiters: list[Task] = []

        def main() -> None:
            self.started = True
            try:
                self.result = run()
            except Killed:
                self.killed = True

        self.greenlet = greenlet.greenlet(main, hub)


class Process:
    """What is kept in memory ends with it; whatever is durable is somebody else's. Until ``stopped_until_us`` nothing
    of it runs, as after SIGSTOP; clocks go on."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.alive = True
        self.stopped_until_us = 0
        self.tasks: dict[Task, None] = {}

    def spawn(self, run: Callable[[], Any], delay_us: int = 0) -> Task:
        task = Task(self, run, self.kernel.hub)
        self.tasks[task] = None
        self.kernel.schedule(task, delay_us)
        return task


class Kernel:
    """``now_us``: true time. ``note`` writes the trace, whose digest tells two runs apart, and prints what is said
    of the id ``about``."""

    def __init__(self, seed: int, start_us: int, about: str | None = None) -> None:
        self.random = Random(seed)
        self.now_us = start_us
        self.steps = 0
        self.about = about
        self.hub = greenlet.getcurrent()
        self.current: Task | None = None
        self.tail: deque[tuple[Any, ...]] = deque(maxlen=TAIL)
        self._digest = blake2b(digest_size=8)
        self._heap: list[tuple[int, int, Task, int]] = []
        self._number = 0
        self._condemned: list[Process] = []

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def note(self, *what: Any) -> None:
        self.tail.append((self.steps, self.now_us, *what))
        if self.about is not None and any(self.about == str(each) for each in what):
            print(self.steps, self.now_us, *what, flush=True)
        self._digest.update(repr((self.now_us, what)).encode())

    def monotonic(self) -> float:
        return self.now_us / 1e6

    def schedule(self, task: Task, delay_us: int) -> None:
        task.token += 1
        self._number += 1
        heappush(self._heap, (self.now_us + max(0, delay_us), self._number, task, task.token))

    def sleep(self, us: int) -> None:
        """Let the others run, so long at least. The current process may be gone when it is over."""
        until_us = self.now_us + us
        self.park(us)
        while self.now_us < until_us:
            self.park(until_us - self.now_us)

    def park(self, us: int) -> None:
        """As ``sleep``, but ``wake`` ends it early."""
        self.schedule(self._running(), us)
        self._switch()

    def wake(self, task: Task) -> None:
        if not task.done:
            self.schedule(task, 0)

    def call(self, process: Process, run: Callable[[], Any]) -> Any:
        """Have another process do something, and wait.

        Raises:
            Gone: it ended before it answered.
        """
        me = self._running()
        if not process.alive:
            raise Gone(process.name)

        def answered() -> tuple[Any, Exception | None]:
            try:
                return run(), None
            except Exception as error:  # noqa: BLE001 - raised again where it was asked for
                return None, error

        task = process.spawn(answered)
        task.waiters.append(me)
        me.token += 1
        while not task.done:
            self._switch()
        if task.killed or task.result is None:
            raise Gone(process.name)
        result, error = task.result
        if error is not None:
            raise error
        return result

    def together(self, process: Process, runs: Sequence[Callable[[], Any]]) -> None:
        """Have a process do several things at a time, and wait for all."""
        me = self._running()
        tasks = [process.spawn(run) for run in runs]
        for task in tasks:
            task.waiters.append(me)
        me.token += 1
        while not all(task.done for task in tasks):
            self._switch()

    def kill(self, process: Process) -> None:
        """With its next breath: the hub ends its tasks after this step."""
        if process.alive:
            process.alive = False
            self._condemned.append(process)

    def run(self, until: Callable[[], bool]) -> None:
        """Step by step until ``until`` holds, or nothing is left to happen."""
        while self._heap and not until():
            at_us, _, task, token = heappop(self._heap)
            if task.done or task.token != token:
                continue
            self.now_us = max(self.now_us, at_us)
            if task.process.stopped_until_us > self.now_us:
                self.schedule(task, task.process.stopped_until_us - self.now_us)
                continue
            self.steps += 1
            self._resume(task)
            while self._condemned:
                self._end(self._condemned.pop())

    def _running(self) -> Task:
        task = self.current
        assert task is not None
        if not task.process.alive:
            raise Killed
        return task

    def _switch(self) -> None:
        task = self.current
        assert task is not None
        self.hub.switch()
        if not task.process.alive:
            raise Killed

    def _resume(self, task: Task, *thrown: type[BaseException]) -> None:
        before, self.current = self.current, task
        if thrown:
            task.greenlet.throw(*thrown)
        else:
            task.greenlet.switch()
        self.current = before
        if task.greenlet.dead:
            self._over(task)

    def _end(self, process: Process) -> None:
        for task in list(process.tasks):
            task.killed = True
            if task.started and not task.greenlet.dead:
                self._resume(task, Killed)
            self._over(task)

    def _over(self, task: Task) -> None:
        if task.done:
            return
        task.done = True
        task.process.tasks.pop(task, None)
        for waiter in task.waiters:
            self.wake(waiter)


class SimBackground:
    """``Background`` of one process: one worker, first in first out. A task that the ledger fails is forgotten."""

    def __init__(self, process: Process, forgiven: tuple[type[Exception], ...], capacity: int = 200) -> None:
        self._process = process
        self._forgiven = forgiven
        self._capacity = capacity
        self._tasks: deque[Callable[[], None]] = deque()
        self._worker: Task | None = None
        self._pausing = False
        self.closing = False

    def __len__(self) -> int:
        return len(self._tasks) + (self._worker is not None)

    def submit(self, task: Callable[[], None]) -> bool:
        if self.closing or len(self._tasks) >= self._capacity or not self._process.alive:
            return False
        self._tasks.append(task)
        if self._worker is None:
            self._worker = self._process.spawn(self._work)
        return True

    def pause(self, seconds: float) -> bool:
        if self.closing:
            return False
        self._pausing = True
        self._process.kernel.park(round(seconds * 1e6))
        self._pausing = False
        return not self.closing

    def close(self) -> None:
        """No more is taken, and nobody pauses; what was taken still runs."""
        self.closing = True
        if self._worker is not None and self._pausing:
            self._process.kernel.wake(self._worker)

    def _work(self) -> None:
        try:
            while self._tasks:
                try:
                    self._tasks.popleft()()
                except self._forgiven:
                    self._process.kernel.note("task failed", self._process.name)
        finally:
            self._worker = None
