"""Load from several processes: closed loop, each slot sends its next request when it has its answer."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import TracebackType

from vllm_bench.prompts import chat_body, texts
from vllm_bench.wire import Connection, Reply, Target

STARTED_S = 60.0
START_IN_S = 0.3  # every process has its task by then, so that all begin together


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: ``requests`` one after another in each of ``concurrency`` slots, cut off after ``seconds``.

    ``prefixes``: how many different shared parts there are.
    """

    concurrency: int
    requests: int
    prompt_tokens: int = 512
    output_tokens: int = 128
    shared_percent: int = 0
    seconds: float = 120.0
    seed: str = "0"
    prefixes: int = 1


@dataclass(slots=True)
class Run:
    """What a cell gave: replies, seconds from the first begin to the last reply, CPU share of the busiest process.

    ``cut``: slots that were still at work when the time was over; what they had not finished is not counted.
    """

    replies: list[Reply]
    seconds: float
    busy: float
    processes: int
    cut: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    cell: Cell
    targets: tuple[Target, ...]
    slots: tuple[int, ...]
    start_at: float


class Clients:
    """Load processes that stay for all cells. A context manager."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(processes)
        self._pool = ProcessPoolExecutor(processes, context, initializer=_be_there, initargs=(barrier,))

    def __enter__(self) -> Clients:
        # Imports take longer than START_IN_S: have every process up before the first cell.
        list(self._pool.map(abs, range(self._processes)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, cell: Cell, targets: Sequence[Target]) -> Run:
        """Slots are spread over processes and, within each, over targets in turn."""
        return self.start(cell, targets).result()

    def start(self, cell: Cell, targets: Sequence[Target]) -> Started:
        """Begin without waiting for the end. One cell at a time."""
        count = min(self._processes, cell.concurrency)
        start_at = time.monotonic() + START_IN_S
        tasks = [
            _Task(cell, tuple(targets), tuple(range(index, cell.concurrency, count)), start_at)
            for index in range(count)
        ]
        return Started(start_at, [self._pool.submit(_work, task) for task in tasks])


@dataclass(frozen=True, slots=True)
class Started:
    """A cell under way."""

    start_at: float
    parts: list[Future[_Part]]

    def result(self) -> Run:
        """Waits for its end."""
        parts = [part.result() for part in self.parts]
        ended = max((end for part in parts for end in part.ends), default=time.monotonic())
        return Run(
            replies=[reply for part in parts for reply in part.replies],
            seconds=ended - self.start_at,
            busy=max(part.busy for part in parts),
            processes=len(parts),
            cut=sum(part.cut for part in parts),
        )


def _be_there(barrier: Barrier) -> None:
    barrier.wait(STARTED_S)


@dataclass(slots=True)
class _Part:
    replies: list[Reply]
    ends: list[float]  # of each
    cut: int
    busy: float


def _work(task: _Task) -> _Part:
    time.sleep(max(0.0, task.start_at - time.monotonic()))
    cpu = time.process_time()
    replies: list[Reply] = []
    ends: list[float] = []
    cut = asyncio.run(_slots(task, replies, ends))
    busy = (time.process_time() - cpu) / max(time.monotonic() - task.start_at, 1e-9)
    return _Part(replies, ends, cut, busy)


async def _slots(task: _Task, replies: list[Reply], ends: list[float]) -> int:
    """Collects replies and the time of each one's end. How many slots had to be cut."""
    slots = [asyncio.create_task(_slot(task, slot, replies, ends)) for slot in task.slots]
    done, pending = await asyncio.wait(slots, timeout=max(0.0, task.start_at + task.cell.seconds - time.monotonic()))
    for slot in pending:
        slot.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for slot in done:
        slot.result()
    return len(pending)


async def _slot(task: _Task, slot: int, replies: list[Reply], ends: list[float]) -> None:
    cell = task.cell
    connection = Connection(task.targets[slot % len(task.targets)])
    source = texts(cell.prompt_tokens, cell.shared_percent, cell.seed, str(slot), cell.prefixes)
    try:
        for _ in range(cell.requests):
            shared, own = next(source)
            replies.append(await connection.ask("chat/completions", chat_body(shared, own, cell.output_tokens)))
            ends.append(time.monotonic())
    finally:
        connection.close()


async def paired(targets: Sequence[Target], cell: Cell, pause_s: float = 0.0) -> list[list[Reply]]:
    """``cell.requests`` single requests to each target, in turns, so that drift of the engine falls on all alike.

    Ends early after ``cell.seconds``. With ``pause_s``, each waits so long after the one before: what a gateway does
    after an answer is over by then. Returns the replies by target, in order: the n-th of each belong together.
    """
    ends_at = time.monotonic() + cell.seconds
    connections = [Connection(target) for target in targets]
    sources = [texts(cell.prompt_tokens, cell.shared_percent, cell.seed, str(n)) for n in range(len(targets))]
    replies: list[list[Reply]] = [[] for _ in targets]
    for turn in range(cell.requests):
        if time.monotonic() > ends_at:
            break
        order = range(len(targets)) if turn % 2 == 0 else range(len(targets) - 1, -1, -1)
        for number in order:
            shared, own = next(sources[number])
            body = chat_body(shared, own, cell.output_tokens)
            await asyncio.sleep(pause_s)
            async with asyncio.timeout(cell.seconds):
                replies[number].append(await connections[number].ask("chat/completions", body))
    for connection in connections:
        connection.close()
    return replies
