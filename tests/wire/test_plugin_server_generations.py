"""One plugin server after another: takeover of the socket, what Kong's reload does to its servers, the parent's end."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_server_client import Refused, Worker
from plugin_server_probe import pack_script
from plugin_server_process import OURS, Launched, ServerProcess

Start = Callable[..., ServerProcess]
GET = ["kong.request.get_method", []]
PHASES = ("access", "log")


def test_a_successor_takes_over_without_a_gap(start_server: Start) -> None:
    """A stale or a live socket is replaced in one step, and the predecessor's end leaves the successor's in place."""
    stale = start_server()
    stale.stop(signal.SIGKILL)
    assert stale.path.exists()
    first = start_server()
    misses: list[OSError] = []
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(first.path))
                except OSError as error:
                    misses.append(error)
            done.wait(0.001)

    knocking = threading.Thread(target=knock)
    knocking.start()
    second = start_server()
    assert first.stop() == 0
    client = Worker(second.path)
    client.run(client.start())
    done.set()
    knocking.join()
    assert misses == []
    assert client.pids == [second.process.pid]


def test_outlives_what_kong_kills_until_its_successor_has_all_of_kongs_connections(
    tmp_path: Path, start_server: Start
) -> None:
    """A worker that ends after a reload kills what it started; the next one may have an event and connections there.
    The event ends, others go on, and once there is a successor the connections are given up: idle ones Kong closes, and
    one that Kong has just sent a request on still answers it."""
    server = Launched("nginx", [*OURS, "-p", str(tmp_path)])
    try:
        serving = os.pidfd_open(int(server.wait_line("serving").rpartition(" ")[2]))
        worker = Worker(tmp_path / "probe.sock")
        instance = worker.start(script=pack_script(access=[GET]))
        under_way = worker.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        server.launcher.stdin.close()
        server.launcher.wait(5)
        assert server.ends(5)  # what Kong knows
        assert worker.call("plugin.Step", {"EventId": under_way["EventId"]})["Data"] == "ret"
        under_way = worker.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})

        idle = Worker(tmp_path / "probe.sock")
        idle.run(instance, "log")
        successor = start_server()
        assert idle.given_up() == 1
        assert worker.has_nothing_to_read()  # its event's next step would go to the successor
        assert worker.call("plugin.Step", {"EventId": under_way["EventId"]})["Data"] == "ret"
        assert worker.given_up() == 1
        worker.run(instance)
        assert worker.given_up() == 1
        idle.close()
        worker.close()
        assert select.select([serving], [], [], 15)[0]
        assert successor.path.exists()
    finally:
        server.stop()


def test_an_event_goes_on_with_the_server_that_began_it(start_server: Start) -> None:
    """A worker of Kong that ends keeps no connection: the steps of its event come to whoever is at the path by then."""
    two_calls = pack_script(access=[GET, GET], log=[GET])
    first = start_server()
    before = Worker(first.path)
    instance = before.start(script=two_calls)
    events = [before.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": phase}) for phase in PHASES]
    failing = before.start(tag="fails", script=pack_script(log=[GET, ["!raise", ["oops"]]]))
    failed = before.call("plugin.HandleEvent", {"InstanceId": failing, "EventName": "log"})

    second, third = start_server(), start_server()
    after = Worker(third.path)
    answer = after.call("plugin.Step", {"EventId": events[0]["EventId"], "Data": "POST"})
    assert answer["Data"]["Method"] == "kong.request.get_method"
    assert after.call("plugin.Step", {"EventId": answer["EventId"], "Data": "POST"})["Data"] == "ret"
    assert after.call("plugin.Step", {"EventId": events[1]["EventId"]})["Data"] == "ret"
    with pytest.raises(Refused, match="probe in log"):
        after.call("plugin.Step", {"EventId": failed["EventId"]})
    assert after.pids == []  # of another process than the one that Kong talks to
    assert second.stop() == 0
    unknown = after.call("plugin.Step", {"EventId": 7})
    assert unknown["Data"]["Method"] == "kong.response.exit"


def test_gives_up_no_connection_for_a_socket_that_is_only_gone(tmp_path: Path) -> None:
    """A clean-up removed it in a reload: nobody is there to take the connections over."""
    server = Launched("nginx", [*OURS, "-p", str(tmp_path)])
    try:
        server.wait_line("serving")
        worker = Worker(tmp_path / "probe.sock")
        instance = worker.start(script=pack_script(access=[GET]))
        server.launcher.stdin.close()
        server.launcher.wait(5)
        server.wait_line("Kong's worker has ended")
        idle, worker = worker, Worker(tmp_path / "probe.sock")
        worker.run(instance)
        (tmp_path / "probe.sock").unlink()
        worker.run(instance, "access", lambda *_: time.sleep(0.3))  # it looks twenty times a second
        assert idle.has_nothing_to_read()
        for each in (idle, worker):
            each.run(instance)
            each.close()
    finally:
        server.stop()


def test_is_ended_by_whoever_ends_the_process_that_kong_started(tmp_path: Path) -> None:
    """With Kong's worker still there it is an operator, and Kong starts the next one when all of this one is gone."""
    server = Launched("nginx", [*OURS, "-p", str(tmp_path)])
    try:
        serving = os.pidfd_open(int(server.wait_line("serving").rpartition(" ")[2]))
        os.kill(server.pid, signal.SIGTERM)
        assert select.select([serving], [], [], 15)[0]
        assert not (tmp_path / "probe.sock").exists()
    finally:
        server.stop()


@pytest.mark.parametrize(("parent", "ends"), [("nginx", True), ("bash", False)])
def test_ends_with_its_parent_only_if_that_is_kong(tmp_path: Path, parent: str, ends: bool) -> None:
    """A crashed worker 0 leaves no orphan; a shell that ends takes nothing with it."""
    server = Launched(parent, [*OURS, "-p", str(tmp_path)])
    try:
        serving = os.pidfd_open(int(server.wait_line("serving").rpartition(" ")[2]))
        server.launcher.stdin.close()
        server.launcher.wait(5)
        if ends:
            server.wait_line("Kong's worker has ended")
            assert select.select([serving], [], [], 15)[0]
            assert not (tmp_path / "probe.sock").exists()
        else:
            assert not server.ends(1.5)  # it looks once a second
            client = Worker(tmp_path / "probe.sock")
            client.run(client.start())
    finally:
        server.stop()
