"""What the plugin instances of a process share: there as long as one of them is, and never another's."""

from __future__ import annotations

import gevent
import pytest

from kong_plugins.adapters.ledger import MemoryLedger
from kong_plugins.adapters.process_parts import ProcessParts
from kong_plugins.application.ports import Ledger


class _ClosableLedger(MemoryLedger):
    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made() -> list[_ClosableLedger]:
    return []


@pytest.fixture
def parts(made: list[_ClosableLedger]) -> ProcessParts:
    def connect(_url: str, _timeout_s: float) -> Ledger:
        made.append(_ClosableLedger())
        return made[-1]

    return ProcessParts(connect)


def test_the_last_to_leave_ends_them(parts: ProcessParts, made: list[_ClosableLedger]) -> None:
    """One ledger for all, open until nobody is left."""
    for _ in range(2):
        parts.join()
        parts.ledger("redis://127.0.0.1/0", 0.5)
    parts.leave()
    assert [ledger.closed for ledger in made] == [False]
    parts.leave()
    assert [ledger.closed for ledger in made] == [True]


def test_who_joins_while_the_last_one_drains_loses_nothing(parts: ProcessParts, made: list[_ClosableLedger]) -> None:
    """Kong starts a row again while its idle instance still waits for a settlement: queues and ledger stay open."""
    parts.join()
    parts.ledger("redis://127.0.0.1/0", 0.5)
    drained = []

    def slow() -> None:
        gevent.sleep(0.05)
        drained.append(True)

    parts.releases.submit(slow)
    parts.tightens.submit(slow)
    leaving = gevent.spawn(parts.leave)
    gevent.sleep(0)
    assert not leaving.dead
    parts.join()
    parts.ledger("redis://127.0.0.1/0", 0.5)
    leaving.get(timeout=5)
    assert drained == [True, True]
    assert [ledger.closed for ledger in made] == [True, False]
    for queue in (parts.releases, parts.tightens):
        assert queue.submit(lambda: None)


def test_rows_that_start_at_once_share_one_counter(parts: ProcessParts) -> None:
    """Each has a vocabulary of 70 MB: as many as there were rows were kept, all but one of them for nobody."""
    starting = [gevent.spawn(parts.counter, {}) for _ in range(5)]
    gevent.joinall(starting, raise_error=True)
    assert len({id(each.value) for each in starting}) == 1


def test_rows_that_start_at_once_share_one_ledger(made: list[_ClosableLedger]) -> None:
    """A Cluster is asked for its nodes while it is made, and meanwhile others start."""

    def connect(_url: str, _timeout_s: float) -> Ledger:
        gevent.sleep(0.01)
        made.append(_ClosableLedger())
        return made[-1]

    parts = ProcessParts(connect)
    starting = [gevent.spawn(parts.ledger, "redis+cluster://127.0.0.1", 0.5) for _ in range(5)]
    gevent.joinall(starting, raise_error=True)
    assert len(made) == 1
