"""A collector that is killed at any step loses nothing, and what it delivers twice counts once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from outbox_parts import Lines, event_of, fill, lines_in

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.outbox import GroupQueue, Outbox, SinkStatus, connect_outbox, consumer_name
from kong_plugins.application.deliver import Delivery, Pace

VICTIM = Path(__file__).with_name("collector_victim.py")
EVENTS = 300


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def outbox(valkey: EmbeddedValkey) -> Iterator[Outbox]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    found = connect_outbox(valkey.url)
    found.register(["lines"])
    yield found
    found.close()


@pytest.fixture
def victim(valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a collector process; returns when it is about to deliver."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(VICTIM), valkey.url, str(tmp_path / "lines"), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for what another process does to the ledger or a file, neither of which tells."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def standing(outbox: Outbox) -> SinkStatus:
    (status,) = outbox.status()
    return status


def succeed(outbox: Outbox, path: Path) -> Delivery:
    """Another collector, here, until nothing is left."""
    queue = GroupQueue(outbox.calls, "lines", consumer_name())
    delivery = Delivery("lines", queue, lambda: Lines(path), Pace(1000, 0.0))
    while standing(outbox).behind:
        delivery.step()
    return delivery


@pytest.mark.parametrize("step", ["taken", "half", "written", "acknowledging", "acknowledged"])
def test_a_collector_killed_at_any_step_loses_nothing(
    step: str, victim: Callable[..., subprocess.Popen[str]], valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """Each event is in the sink, the dead letters are empty, and only what was in flight came twice."""
    ids = fill(valkey.url, EVENTS)
    killed = victim("--die", step)
    assert killed.wait(30) == -signal.SIGKILL
    before = lines_in(tmp_path / "lines")
    assert 0 < len(before) < EVENTS
    successor = succeed(outbox, tmp_path / "lines")

    after = lines_in(tmp_path / "lines")
    assert set(after) == set(ids)
    repeats = len(after) - len(ids)
    assert repeats <= successor.progress.redelivered
    if step in {"half", "written", "acknowledging"}:
        assert repeats > 0
    if step == "acknowledged":
        assert repeats == 0
    assert standing(outbox).dead == 0


def test_a_dead_peer_is_relieved_while_a_live_one_works(
    victim: Callable[..., subprocess.Popen[str]], valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """Two processes share the work. One is killed with a batch in hand; the other takes it over by itself."""
    ids = fill(valkey.url, EVENTS)
    killed = victim("--die", "taken", "--batch", "64")
    assert killed.wait(30) == -signal.SIGKILL
    assert standing(outbox).pending > 0
    living = victim()
    until(lambda: standing(outbox).behind == 0)
    assert set(lines_in(tmp_path / "lines")) == set(ids)
    living.send_signal(signal.SIGTERM)
    assert living.wait(30) == 0


def test_a_stand_by_takes_over_from_a_killed_holder(
    victim: Callable[..., subprocess.Popen[str]], valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """A sink that only one process may hold: the second waits and keeps nothing back, until the first is no more."""
    alone = ("--alone", str(tmp_path / "lock"))
    ids = fill(valkey.url, 50, prefix="first")
    holder = victim(*alone)
    until(lambda: standing(outbox).behind == 0)
    stand_by = victim(*alone)
    ids += fill(valkey.url, 200, prefix="second")
    until(lambda: standing(outbox).behind == 0)  # also what the stand-by took and could not write
    assert holder.poll() is None
    assert stand_by.poll() is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    ids += fill(valkey.url, 200, prefix="third")
    until(lambda: standing(outbox).behind == 0)
    assert set(lines_in(tmp_path / "lines")) == set(ids)
    assert standing(outbox).dead == 0


def test_an_event_that_kills_whoever_writes_it_ends_in_the_dead_letters(
    victim: Callable[..., subprocess.Popen[str]], valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """It goes with others at first, then alone, then not at all: every other event is delivered."""
    ids = fill(valkey.url, 8, tenants=1)
    died = 0
    while victim("--poison", ids[3], "--until-empty").wait(30) == -signal.SIGKILL:
        died += 1
        assert died < 10
    assert died == 6  # SUSPECTED_MAX
    assert set(lines_in(tmp_path / "lines")) == {*ids} - {ids[3]}
    (letter,) = outbox.dead_letters()
    assert letter.entry.event_id == ids[3]
    assert "delivered 6 times" in letter.reason


def test_a_signal_finishes_the_batch_and_leaves_nothing_pending(
    victim: Callable[..., subprocess.Popen[str]], valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """SIGTERM under load: status 0, each event in the sink at most once, the rest untouched in the outbox."""
    ids = fill(valkey.url, EVENTS)
    process = victim("--batch", "64")
    until(lambda: bool(lines_in(tmp_path / "lines")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    written = lines_in(tmp_path / "lines")
    assert len(set(written)) == len(written)
    status = standing(outbox)
    assert (status.pending, status.waiting) == (0, len(ids) - len(written))
    assert status.heard_s is None  # it took its leave


def test_a_ledger_that_restarts_under_load_costs_no_event(tmp_path: Path) -> None:
    """Reads and acknowledgements that fail are made again; what was read and never heard of is found again."""
    server = EmbeddedValkey(tmp_path / "valkey", appendfsync="always")
    server.start()
    try:
        ids = fill(server.url, EVENTS)
        outbox = connect_outbox(server.url)
        outbox.register(["lines"])
        queue = GroupQueue(outbox.calls, "lines", consumer_name(), claim_every_s=0.0)

        class RestartingLines(Lines):
            restarts = 0

            def write(self, entries):  # type: ignore[no-untyped-def]
                rejected = super().write(entries)
                if self.restarts < 2:
                    RestartingLines.restarts += 1
                    os.kill(server.pid, signal.SIGKILL)
                    server.stop()
                return rejected

        delivery = Delivery("lines", queue, lambda: RestartingLines(tmp_path / "lines"), Pace(64, 0.0))
        for _ in range(100):
            pause_s = delivery.step()
            if pause_s:
                try:
                    server.start()
                except Exception:  # noqa: BLE001 - it runs
                    if not standing(outbox).behind:
                        break
        assert RestartingLines.restarts == 2
        assert set(lines_in(tmp_path / "lines")) == set(ids)
        ledger = connect_ledger(server.url)
        assert not ledger.record("tenant-0", ids[0], event_of(ids[0], "tenant-0"))
        ledger.close()
        outbox.close()
    finally:
        server.stop()
