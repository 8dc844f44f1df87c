"""Settlements through outages of a real ledger and kills of the process that has the spool: each is posted once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.ledger.concurrency import Threads
from kong_plugins.adapters.ledger.redis_ledger import RedisLedger
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.windows import FixedWindow, Unit

CHILD = Path(__file__).with_name("spool_process.py")
TENANT = "tenant_a"
HOUR_US = 3_600_000_000


class Child:
    """A process under test, fed nothing and read line by line."""

    def __init__(self, url: str, spool: Path, first: int, last: int, workers: int = 1) -> None:
        argv = [sys.executable, str(CHILD), url, str(spool), str(first), str(last), str(workers)]
        self.errors = (spool.parent / f"child-{first}.log").open("ab")
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env={**os.environ}
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def logged(self, count: int) -> list[int]:
        """The next requests whose log phase returned."""
        return [int(self.read()) for _ in range(count)]

    def kill(self) -> list[int]:
        """SIGKILL; what it had said before and nobody had read."""
        self.process.kill()
        assert self.process.stdout is not None
        rest = [int(line) for line in self.process.stdout.read().split(b"\n")[:-1]]
        self.process.wait()
        self.errors.close()
        return rest

    def end(self, now: bool = False) -> None:
        """Let it drain and end by itself; ``now``: leave what cannot be drained."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"now" if now else b"")
        self.process.stdin.close()
        lines = [self.read()]
        while lines[-1] != "ended":
            assert self.process.poll() is None, Path(self.errors.name).read_text()
            lines.append(self.read())
        assert self.process.wait(20) == 0
        self.errors.close()


@contextmanager
def stopped(server: EmbeddedValkey) -> Iterator[None]:
    """It is there and answers nothing, as behind a broken network."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey", appendfsync="always") as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, float]:
    """The process's own metrics, without the ledger's label."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = (line.rsplit(" ", 1) for line in lines if line.startswith("token_quota"))
    return {re.sub(r'ledger="[^"]*",?', "", name).replace("{}", ""): float(value) for name, value in values}


def hold(server: EmbeddedValkey, count: int) -> None:
    ledger = connect_ledger(server.url, timeout_s=5, concurrency=Threads())
    line = Line("daily", FixedWindow(Unit.MONTH), TOTAL, 10_000_000, 200)
    for number in range(count):
        assert ledger.hold(HoldRequest(TENANT, f"r{number:05}", (line,), HOUR_US)).admitted
    ledger.close()


def posted(server: EmbeddedValkey) -> tuple[list[int], int, int]:
    """Request numbers in the outbox's order, and what is committed and held."""
    ledger: RedisLedger = connect_ledger(server.url, timeout_s=5, concurrency=Threads())
    entries, after = [], "0"
    while page := ledger.outbox(partition_of(TENANT), after, 1000):
        entries += page
        after = page[-1].position
    (balance,) = ledger.balances(TENANT)
    ledger.close()
    return [int(entry.event_id[1:]) for entry in entries], balance.state.committed, balance.state.held


def charge(count: int) -> int:
    return sum(15 + number % 7 for number in range(count))


def test_a_kill_while_the_ledger_is_away_loses_nothing_and_the_order_holds(server: EmbeddedValkey, spool: Path) -> None:
    """The process that has the spool is killed -9 in the outage; another goes on, and takes over what it left. Whatever
    a log phase had answered for is posted once, in the order of arrival."""
    hold(server, 120)
    first = Child(server.url, spool, 0, 120)
    done = first.logged(20)
    with stopped(server):
        done += first.logged(40)  # over the outage: into the spool
        done += first.kill()
        assert done == list(range(len(done)))
        assert len(done) < 120
        second = Child(server.url, spool, len(done), 120)
        second.logged(5)
    second.end()
    numbers, committed, held = posted(server)
    assert numbers == list(range(120))
    assert (committed, held) == (charge(120), 0)


def test_a_ledger_killed_and_restarted_under_load(server: EmbeddedValkey, spool: Path) -> None:
    """Its process is killed -9 among concurrent settlements, and comes back with its file: each is posted once."""
    hold(server, 400)
    child = Child(server.url, spool, 0, 400, workers=8)
    child.logged(50)
    os.kill(server.pid, signal.SIGKILL)
    child.logged(100)
    server.stop()
    server.start()
    child.end()
    numbers, committed, held = posted(server)
    assert sorted(numbers) == list(range(400))
    assert (committed, held) == (charge(400), 0)


def test_a_process_killed_while_it_replays_posts_nothing_twice(server: EmbeddedValkey, spool: Path) -> None:
    """Between the ledger's answer and the spool's removal: the next process posts these again, unchanged."""
    hold(server, 300)
    first = Child(server.url, spool, 0, 300)
    first.logged(5)
    with stopped(server):
        first.logged(290)
    done = 295
    while len(posted(server)[0]) < 60:  # the ledger is back: it replays
        time.sleep(0.002)
    done += len(first.kill())
    second = Child(server.url, spool, done, 300)
    second.end()
    numbers, committed, held = posted(server)
    assert sorted(numbers) == list(range(300))
    assert (committed, held) == (charge(300), 0)


def test_an_end_in_an_outage_leaves_everything_for_the_next(
    server: EmbeddedValkey, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as by a reload, without a ledger: it ends in time, and nothing waits in memory only."""
    hold(server, 60)
    monkeypatch.setenv("TOKEN_QUOTA_METRICS_PORT", str(min(free_port(), 60_000)))
    with stopped(server):
        first = Child(server.url, spool, 0, 60, workers=4)
        done = first.logged(60)
        assert sorted(done) == list(range(60))
        metrics = scrape(int(os.environ["TOKEN_QUOTA_METRICS_PORT"]))
        assert metrics['token_quota_spool_postings{state="waiting"}'] == 60
        assert metrics['token_quota_postings_total{result="spooled"}'] == 60
        assert metrics["token_quota_spool_bytes"] > 60 * 100
        assert metrics["token_quota_spool_oldest_seconds"] > 0
        first.end(now=True)
    second = Child(server.url, spool, 60, 60)
    second.end()
    numbers, committed, held = posted(server)
    assert sorted(numbers) == list(range(60))
    assert (committed, held) == (charge(60), 0)
