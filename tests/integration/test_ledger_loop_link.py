"""The link that greenlets share: order, deadlines and what becomes of callers that go away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.ledger.concurrency import Greenlets
from kong_plugins.adapters.ledger.links import LinkBrokenError
from kong_plugins.adapters.ledger.loop_link import LoopLink
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line
from kong_plugins.domain.windows import RollingWindow


@pytest.fixture
def ends() -> Iterator[tuple[LoopLink, socket.socket]]:
    """A link and the server's end of its socket."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    link = LoopLink(ours)
    with theirs:
        yield link, theirs
        link.close("the test is over")


def turn() -> None:
    """Let what was spawned ask, and the link write."""
    gevent.sleep(0)
    gevent.sleep(0)


def soon(seconds: float = 5) -> float:
    return time.monotonic() + seconds


def test_answers_come_in_the_order_of_the_requests(ends) -> None:
    link, server = ends
    jobs = [gevent.spawn(link.request, b"%d;" % number, soon()) for number in range(5)]
    turn()
    assert server.recv(1000) == b"0;1;2;3;4;"
    server.sendall(b":10\r\n:11\r\n:12\r\n:13\r\n:1")
    gevent.joinall(jobs[:4], timeout=5)
    assert [job.value for job in jobs] == [10, 11, 12, 13, None]
    server.sendall(b"4\r\n")
    assert jobs[4].get(timeout=5) == 14


def test_what_is_asked_in_one_turn_leaves_in_one_write() -> None:
    ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    link = LoopLink(ours)
    with server:
        server.settimeout(5)
        jobs = [gevent.spawn(link.request, b"%d;" % number, soon()) for number in range(5)]
        turn()
        assert server.recv(1000) == b"0;1;2;3;4;"
        link.close("the test is over")
        gevent.joinall(jobs, timeout=5)


def test_the_answer_of_a_caller_that_went_away_reaches_nobody_else(ends) -> None:
    """Nor does it wake what that caller waits for meanwhile."""
    link, server = ends
    done = Event()

    def turn_to_something_else() -> str:
        with pytest.raises(gevent.GreenletExit):
            link.request(b"x", soon())
        return "done" if done.wait(5) else "not done"

    jobs = [gevent.spawn(link.request, b"x", soon()) for _ in range(2)]
    jobs.append(gevent.spawn(turn_to_something_else))
    later = gevent.spawn(link.request, b"x", soon())
    turn()
    jobs[2].kill(block=False)
    turn()
    server.sendall(b":0\r\n:1\r\n:2\r\n:3\r\n")
    assert later.get(timeout=5) == 3
    assert not jobs[2].dead
    done.set()
    gevent.joinall(jobs, timeout=5)
    assert [job.value for job in jobs] == [0, 1, "done"]


def test_a_caller_that_something_else_wakes_waits_on(ends) -> None:
    link, server = ends
    job = gevent.spawn(link.request, b"x", soon())
    gevent.sleep(0)
    gevent.get_hub().loop.run_callback(job.switch)
    gevent.sleep(0)
    assert not job.dead
    server.sendall(b":7\r\n")
    assert job.get(timeout=5) == 7


def test_a_caller_that_ends_with_an_error_keeps_no_other_waiting(ends, capsys: pytest.CaptureFixture[str]) -> None:
    link, server = ends

    def fail() -> None:
        link.request(b"x", soon())
        raise RuntimeError("a caller's own fault")

    hub = gevent.get_hub()
    hub.loop.run_callback(greenlet(fail, parent=hub).switch)
    other = gevent.spawn(link.request, b"y", soon())
    turn()
    server.sendall(b":0\r\n:1\r\n")
    assert other.get(timeout=5) == 1
    assert "a caller's own fault" in capsys.readouterr().err


def test_a_request_larger_than_the_socket_takes_arrives_whole(ends) -> None:
    link, server = ends
    large = os.urandom(1 << 22)
    jobs = [gevent.spawn(link.request, part, soon(30)) for part in (large, b"behind")]
    got = bytearray()
    server.setblocking(False)
    while len(got) < len(large) + 6:
        gevent.sleep(0)
        try:
            got += server.recv(1 << 20)
        except BlockingIOError:
            assert link.broken is None
    assert bytes(got) == large + b"behind"
    server.sendall(b":1\r\n:2\r\n")
    gevent.joinall(jobs, timeout=5)
    assert [job.value for job in jobs] == [1, 2]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (None, "the server closed the connection"),
        (b"!what\r\n", "ProtocolError"),
        (b":1\r\n:2\r\n:3\r\n:4\r\n", "nobody asked for"),
    ],
)
def test_everybody_is_told_when_the_link_breaks(ends, sent: bytes | None, why: str) -> None:
    link, server = ends
    jobs = [gevent.spawn(link.request, b"x", soon()) for _ in range(3)]
    turn()
    if sent is None:
        server.shutdown(socket.SHUT_RDWR)
    else:
        server.sendall(sent)
    gevent.joinall(jobs, timeout=5)
    assert all(job.dead for job in jobs)
    if sent is None or not sent.startswith(b":"):
        assert {type(job.exception) for job in jobs} == {LinkBrokenError}
    with pytest.raises(LinkBrokenError, match=why):
        link.request(b"x", soon())


def test_one_late_answer_tells_all_and_a_link_is_not_late_while_nobody_waits(ends) -> None:
    link, server = ends
    first = gevent.spawn(link.request, b"x", soon(0.05))
    gevent.sleep(0)
    server.sendall(b":1\r\n")
    assert first.get(timeout=5) == 1
    patient = gevent.spawn(link.request, b"x", soon())
    gevent.sleep(0.1)  # past the first one's time
    assert link.broken is None
    server.sendall(b":2\r\n")
    assert patient.get(timeout=5) == 2
    started = time.monotonic()
    late = [gevent.spawn(link.request, b"x", soon(0.1)) for _ in range(3)]
    gevent.joinall(late, timeout=5)
    assert [str(job.exception) for job in late] == ["no answer in time"] * 3
    assert time.monotonic() - started < 2


def test_a_stalled_server_is_said_in_time_and_its_late_answers_reach_nobody(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "data") as server:
        ledger = connect_ledger(server.url, timeout_s=0.3, concurrency=Greenlets())
        line = Line("budget", RollingWindow(60), TOTAL, 1000, 10)

        def hold(name: str) -> HoldRequest:
            return HoldRequest("acme", name, (line,), 60_000_000)

        assert ledger.hold(hold("before")).admitted
        os.kill(server.pid, signal.SIGSTOP)
        try:
            jobs = [gevent.spawn(ledger.hold, hold(str(number))) for number in range(20)]
            started = time.monotonic()
            gevent.joinall(jobs, timeout=5)
            assert time.monotonic() - started < 1.5
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert {type(job.exception) for job in jobs} == {LedgerUnavailable}
        patient = connect_ledger(server.url, timeout_s=5, concurrency=Greenlets())
        (state,) = patient.peek("acme", [line])
        assert state.limit == 1000
        other = Line("other", RollingWindow(60), TOTAL, 77, 5)
        outcome = ledger.hold(HoldRequest("acme", "after", (other,), 60_000_000))
        assert (outcome.states[0].key, outcome.states[0].held) == ("other", 5)
        for each in (ledger, patient):
            each.close()


FORK = """
import os, socket, time, gevent
from kong_plugins.adapters.ledger.loop_link import LoopLink

ours, server = socket.socketpair()
link = LoopLink(ours)
job = gevent.spawn(link.request, b"x", time.monotonic() + 5)
gevent.sleep(0)
server.sendall(b":42\\r\\n")
done, tell = os.pipe()
if gevent.fork() == 0:
    for _ in range(5):
        gevent.sleep(0.001)  # a turn of its own loop
    os.write(tell, b"!")
    os._exit(0)
os.read(done, 1)
assert job.get(timeout=5) == 42
"""


def test_a_fork_takes_no_answer_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
