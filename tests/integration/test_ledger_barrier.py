"""Two hundred requests at once against room for k: exactly k are admitted, whatever kind of window counts them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey, RedisLedger, connect_ledger
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit, WindowSpec

REQUESTS = 200
ROOM = 37
AMOUNT = 7
KINDS: list[WindowSpec] = [*map(FixedWindow, Unit), RollingWindow(60), TokenBucket(86_400)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.mark.parametrize("window", KINDS, ids=[f"fixed-{unit}" for unit in Unit] + ["rolling", "bucket"])
def test_exactly_k_of_two_hundred_are_admitted(server: EmbeddedValkey, window: WindowSpec) -> None:
    """From threads over two connections, as two plugin servers would. (Where a second or a minute ends in between,
    exactly k in each window.)"""
    ledgers = [connect_ledger(server.url, timeout_s=20) for _ in range(2)]
    barrier = threading.Barrier(REQUESTS)
    outcomes: list[HoldOutcome] = []

    def ask(ledger: RedisLedger, number: int) -> None:
        line = Line("budget", window, TOTAL, ROOM * AMOUNT + AMOUNT - 1, AMOUNT)
        barrier.wait()
        outcomes.append(ledger.hold(HoldRequest("acme", f"{window}-{number}", (line,), 60_000_000)))

    threads = [threading.Thread(target=ask, args=(ledgers[number % 2], number)) for number in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.close()
    assert len(outcomes) == REQUESTS
    if isinstance(window, FixedWindow):
        asked = Counter(outcome.states[0].reset_us for outcome in outcomes)
        admitted = Counter(outcome.states[0].reset_us for outcome in outcomes if outcome.admitted)
        assert admitted == {end: min(ROOM, count) for end, count in asked.items()}
    else:
        assert sum(outcome.admitted for outcome in outcomes) == ROOM


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from gevent.event import Event
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.concurrency import Greenlets, detect
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import RollingWindow

assert isinstance(detect(), Greenlets)
ledger = connect_ledger(sys.argv[1], timeout_s=20)
line = Line("budget", RollingWindow(60), TOTAL, 37, 1)
go = Event()
def ask(number):
    go.wait()
    return ledger.hold(HoldRequest("greenlets", str(number), (line,), 60_000_000)).admitted
jobs = [gevent.spawn(ask, number) for number in range(200)]
gevent.sleep(0)
go.set()
gevent.joinall(jobs, raise_error=True)
held = [number for number, job in enumerate(jobs) if job.value]
assert len(held) == 37, held
done = [gevent.spawn(ledger.settle, Settlement("greenlets", str(n), Usage(1), Evidence.EXACT, b"{}")) for n in held]
gevent.joinall(done, raise_error=True)
(state,) = ledger.peek("greenlets", [line])
assert (state.committed, state.held) == (37, 0), state
"""


def test_exactly_k_of_two_hundred_greenlets_are_admitted(server: EmbeddedValkey, tmp_path: Path) -> None:
    """Under gevent all of them share one socket, as in the plugin server."""
    script = tmp_path / "greenlets.py"
    script.write_text(GREENLETS)
    done = subprocess.run([sys.executable, script, server.url], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
