"""The collector and what it writes to: ``Delivery`` as it is, over a queue and a sink that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kong_plugins.application.deliver import Delivery, Pace
from kong_plugins.application.ports import LedgerUnavailable, OutboxEntry, Rejected, SinkUnavailable
from tests.simulation.kernel import Killed, Process, Task
from tests.simulation.parties import Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

SINK = "books"
PACE = Pace(batch=24, linger_s=0.5)


class Books:
    """A sink's memory that outlives collectors: entries by event id, the first that came."""

    world: World

    def __init__(self) -> None:
        self.rows: dict[Any, OutboxEntry] = {}
        self.away_until_us = 0
        self.refused: dict[str, None] = {}

    def store(self, entries: Sequence[OutboxEntry]) -> None:
        for entry in entries:
            self.rows.setdefault(entry.event_id, entry)
            self.world.watch.sink_has(entry.event_id, self.rows[entry.event_id].event)

    def compare(self) -> None:
        """With what else keeps the books: nothing does."""

    def close(self) -> None:
        """Nothing is open."""


class SinkEnd:
    """``Sink`` as one collector has it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        world, faults, books = self._world, self._world.faults, self._world.books
        world.kernel.sleep(world.kernel.random.randrange(500, 5_000))
        if world.kernel.now_us < books.away_until_us or faults.hit("sink away"):
            raise SinkUnavailable("away")
        if faults.hit("collector killed before the write"):
            self._die()
        if faults.hit("sink wrote a part"):
            books.store(entries[: len(entries) // 2])
            if world.kernel.random.random() < 0.5:
                raise SinkUnavailable("the connection broke")
            raise RuntimeError("whatever it is")
        rejected = tuple(Rejected(each, "too odd") for each in entries if faults.hit("sink rejects"))
        refused = {each.entry.position for each in rejected}
        books.store([each for each in entries if each.position not in refused])
        if faults.hit("collector killed after the write"):
            self._die()
        if faults.hit("sink reply lost"):
            raise SinkUnavailable("no reply")
        return rejected

    def close(self) -> None:
        """Nothing is open."""

    def _die(self) -> None:
        self._world.killed(self._process)
        raise Killed


class Reader:
    """What ``Delivery`` has a thread for, as a task."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def submit(self, run: Callable[..., Any], *args: Any) -> Ahead:
        return Ahead(self._process, run, args)

    def shutdown(self) -> None:
        """It ends with its process."""


class Ahead:
    def __init__(self, process: Process, run: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._kernel = process.kernel
        self._error: Exception | None = None

        def read() -> Any:
            try:
                return run(*args)
            except LedgerUnavailable as error:
                self._error = error

        self._task: Task = process.spawn(read)

    def result(self) -> Any:
        while not self._task.done:
            self._kernel.sleep(1_000)
        if self._error is not None:
            raise self._error
        return self._task.result


class Collector:
    """One process, number ``number``. One that is stopped hears of it between two batches."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.number = number
        self.process = Process(world.kernel, consumer(number))
        self.wire = Wire(world, self.process, "collector")
        self.stopping = False
        world.consumers[self.process.name] = self.process
        queue = world.store.queue(self.wire, SINK, self.process.name, world.kernel.monotonic, self._gone)
        self.delivery = Delivery(SINK, queue, lambda: SinkEnd(world, self.process), PACE)
        self.delivery._reader = Reader(self.process)
        self.process.spawn(self._run)
        self.process.spawn(self._trim)

    def _run(self) -> None:
        while not self.stopping:
            self._world.kernel.sleep(round(self.delivery.step() * 1e6))
        self.delivery.close()
        self._world.killed(self.process)
        raise Killed

    def _trim(self) -> None:
        while True:
            self._world.kernel.sleep(3_000_000)
            try:
                self.wire.call("trim")
            except LedgerUnavailable:
                self._world.kernel.note("not trimmed")

    def _gone(self) -> frozenset[str]:
        return frozenset(name for name, process in self._world.consumers.items() if not process.alive)


def consumer(number: int) -> str:
    return f"collector-{number}"
