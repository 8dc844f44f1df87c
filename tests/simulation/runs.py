"""One run from a seed, what came of it, and how few kinds of trouble it takes to have a failure again."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulation.account import Counts
from tests.simulation.collecting import Books
from tests.simulation.faults import EVENTS, RATES
from tests.simulation.kernel import Violation
from tests.simulation.memory_store import MemoryStore
from tests.simulation.world import World


@dataclass(frozen=True)
class Result:
    """``digest`` is of the whole trace: equal for equal runs. ``tail``: its last lines, where a promise was broken."""

    seed: int
    steps: int
    seconds: float
    digest: str
    simulated_s: int
    counts: Counts
    faults: Counter[str]
    operations: Counter[str]
    violation: str | None = None
    tail: tuple[str, ...] = ()


def simulate(
    seed: int,
    steps: int,
    *,
    make_store: Callable[[], Any] = MemoryStore,
    make_books: Callable[[Path], Books] = lambda _: Books(),
    without: frozenset[str] = frozenset(),
    say: Callable[[str], None] = lambda _: None,
    about: str | None = None,
) -> Result:
    """About ``steps`` steps from ``seed``; it ends with the first promise that does not hold. ``about``: an id of which
    all that happens is printed."""
    began = time.perf_counter()
    with _scratch() as directory, _quiet():
        world = World(seed, make_store(), directory, without=without, books=make_books(directory), about=about)
        start_us, violation = world.kernel.now_us, None
        try:
            world.run(steps, say)
        except Violation as error:
            violation = str(error)
        finally:
            world.close()
    kernel = world.kernel
    return Result(
        seed,
        kernel.steps,
        time.perf_counter() - began,
        kernel.digest,
        (kernel.now_us - start_us) // 1_000_000,
        world.watch.counts,
        world.faults.counts,
        world.operations,
        violation,
        tuple(" ".join(map(str, each)) for each in kernel.tail) if violation else (),
    )


def shrink(result: Result, run: Callable[[frozenset[str], int], Result], say: Callable[[str], None]) -> Result:
    """Leave out one kind of trouble after the other while something still does not hold, within as many steps."""
    without: frozenset[str] = frozenset()
    for kind in sorted({*RATES, *EVENTS} & result.faults.keys()):
        tried = run(without | {kind}, result.steps)
        if tried.violation is not None and tried.steps <= result.steps:
            without, result = without | {kind}, tried
            say(f"not needed: {kind} ({result.steps:,} steps)")
    return result


@contextmanager
def _scratch() -> Iterator[Path]:
    """In memory where there is such a place: spools sync at every commit."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=shm if shm.is_dir() else None) as directory:
        yield Path(directory)


@contextmanager
def _quiet() -> Iterator[None]:
    """Trouble is what this is about: the logs say nothing else."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
