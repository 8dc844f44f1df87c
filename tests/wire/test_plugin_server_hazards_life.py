"""What stock kong-pdk does wrong over its life, on both servers: log events, instances, start, takeover, the parent's
end. Stock must show the failure, ours must not."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_server_client import Connection, Refused, Worker, pack
from plugin_server_directory import DirectoryWatch
from plugin_server_probe import pack_script
from plugin_server_process import OURS, STOCK, STOCK_GEVENT, Launched, Pipe, ServerProcess

Start = Callable[..., ServerProcess]
GET = ["kong.request.get_method", []]
LOG_EVENTS = 1000
both = pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])


@pytest.fixture
def many_files() -> Iterator[None]:
    """A connection for each log event, here and in the server: often 1,024 files are allowed, and more on request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * LOG_EVENTS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@both
@pytest.mark.usefixtures("many_files")
def test_slow_log_events_wait_together(start_server: Start, tmp_path: Path, command: list[str]) -> None:
    """1,000 log events at once, each of which waits for a gate before its PDK call and again after it.

    Ours: all are in the same wait, so the gate needs to open twice, and each is answered. Stock: one waits and the
    others wait for it, so each opening lets one through: Kong's timers pile up until it drops log events.
    """
    server = start_server(command=command)
    entered = Pipe(tmp_path / "entered")
    hold = ["!hold", [str(entered.path)]]
    instance = Worker(server.path).start(script=pack_script(log=[hold, ["kong.log.serialize", []], hold]))
    connections = [Connection(server.path, 60) for _ in range(LOG_EVENTS)]
    for connection in connections:
        connection.send(pack([0, 7, "plugin.HandleEvent", [{"InstanceId": instance, "EventName": "log"}]]))
    together = LOG_EVENTS if command is OURS else 1

    def open_gate(opening: int) -> None:
        assert entered.wait_for(together) == "x" * together
        # Came after all the events, and is answered: they have had their turn.
        Worker(server.path, timeout_s=60).start(tag=f"turn {opening}")
        assert entered.is_empty()
        gate = pack_script(init=[["!open-gate", []]])
        Worker(server.path, timeout_s=60).start(tag=f"gate {opening}", script=gate)

    if command is not OURS:
        for opening in range(3):
            open_gate(opening)
        return
    open_gate(1)
    for connection in connections:
        event = connection.receive_answer()[3]
        assert event["Data"]["Method"] == "kong.log.serialize"
        connection.send(pack([0, 8, "plugin.Step", [{"EventId": event["EventId"], "Data": {}}]]))
    open_gate(2)
    assert [connection.receive_answer()[3]["Data"] for connection in connections] == ["ret"] * LOG_EVENTS


def served(worker: Worker, instances: list[object]) -> list[object]:
    """Those of the instances that the server still has."""
    there = []
    for instance in instances:
        try:
            worker.run(instance)
        except Refused as refused:
            assert str(refused).startswith("no plugin instance")  # noqa: PT017  # on which Kong starts it again
        else:
            there.append(instance)
    return there


@both
@pytest.mark.parametrize("changed", [True, False], ids=["changed config", "same config"])
def test_generations_that_kong_never_closes(
    start_server: Start, tmp_path: Path, command: list[str], changed: bool
) -> None:
    """A row started by 30 loads of Kong's configuration, none of which was closed.

    Ours keeps --max-instances and ends the others, and has one if the config is the same; stock keeps all 30.
    """
    server = start_server(*(("--max-instances", "5") if command is OURS else ()), command=command)
    worker = Worker(server.path)
    closed = Pipe(tmp_path / "closed")
    script = pack_script(access=[GET], close=[["!touch", [str(closed.path)]]])
    started = [worker.start(tag=f"{load if changed else 0}", script=script, __seq__=load) for load in range(30)]
    if command is not OURS:
        assert len(set(started)) == 30
        assert served(worker, started) == started
        assert len(worker.call("plugin.GetStatus", {})["Plugins"]["probe"]["Instances"]) == 30
        assert closed.is_empty()
    elif changed:
        assert len(set(started)) == 30
        assert served(worker, started) == started[-5:]
        assert closed.wait_for(25) == "x" * 25
    else:
        assert len(set(started)) == 1
        assert served(worker, started[:1]) == started[:1]
    assert closed.is_empty()


@pytest.mark.parametrize("command", [OURS, STOCK], ids=["ours", "stock-threads"])
def test_a_killed_parent_leaves_no_orphan(tmp_path: Path, command: list[str]) -> None:
    """Kong's worker 0 crashes: ours ends. Stock's watchdog sees it, ends its own thread only, and stock goes on."""
    server = Launched("nginx", [*command, "-p", str(tmp_path)])
    path = tmp_path / "probe.sock"
    try:
        server.wait_line("serving" if command is OURS else "started at path")
        while not path.exists():  # stock says so before it binds
            time.sleep(0.01)
        server.launcher.kill()
        server.launcher.wait(5)
        if command is OURS:
            assert server.ends(30)
            assert not path.exists()
        else:
            if server.parent_pid() == 1:  # else another process adopts orphans here, and stock does not even see it
                server.wait_line("Kong exits, terminating")
            assert not server.ends(1)
            worker = Worker(path)
            assert worker.run(worker.start(script=pack_script(access=[GET]))).exit is None
    finally:
        server.stop()


@both
def test_a_parent_that_is_pid_1_has_not_ended(tmp_path: Path, command: list[str]) -> None:
    """Started as a container's first process starts it: ours serves, though told to watch its parent; stock ends."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    options = ["--parent-watch", "always"] if command is OURS else []
    server = Launched(
        "sh", ["sh", "-c", 'read -r _ < "$0"; exec "$@"', str(gate), *command, "-p", str(tmp_path), *options]
    )
    try:
        descriptor = open_when_read(gate)
        server.launcher.kill()
        server.launcher.wait(5)
        if server.parent_pid() != 1:
            pytest.skip("another process than PID 1 adopts orphans here")
        os.write(descriptor, b"go\n")
        os.close(descriptor)
        server.wait_line("serving" if command is OURS else "started at path")
        if command is OURS:
            assert not server.ends(1.5)  # it looks once a second
            worker = Worker(tmp_path / "probe.sock")
            assert worker.run(worker.start(script=pack_script(access=[GET]))).exit is None
        else:
            assert server.ends(15)
    finally:
        server.stop()


def open_when_read(pipe: Path) -> int:
    """Open a pipe for writing once somebody has opened it for reading."""
    for _ in range(3000):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet: the system has no event for this
            time.sleep(0.01)
    raise AssertionError(f"nobody opened {pipe}")


@pytest.mark.parametrize("command", [OURS, STOCK, STOCK_GEVENT], ids=["ours", "stock-threads", "stock-gevent"])
def test_requests_wait_while_plugins_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Kong's first request comes while the plugin's imports are under way: ours answers it when they are done.

    With stock there is no socket by then, and the request is a 500.
    """
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("SLOW_IMPORT", str(gate))
    monkeypatch.setenv("PROBE_MODULE", "plugin_server_slow")
    command = [*OURS[:-1], "plugin_server_slow"] if command is OURS else command
    server = ServerProcess(command, tmp_path, "--socket-name", "probe.sock")
    try:
        descriptor = open_when_read(gate)
        if "kong_plugins.plugin_server" in command:
            client = Connection(server.path, 30)
            client.send(pack([0, 1, "plugin.StartInstance", [{"Name": "probe", "Config": "{}"}]]))
            os.close(descriptor)
            assert client.receive_answer()[3]["Name"] == "probe"
        else:
            with pytest.raises(FileNotFoundError):
                Connection(server.path, 30)
            os.close(descriptor)
            server.wait_line("started at path")
    finally:
        server.stop()


@pytest.mark.parametrize("predecessor", ["stale", "live"])
@pytest.mark.parametrize("command", [OURS, STOCK, STOCK_GEVENT], ids=["ours", "stock-threads", "stock-gevent"])
def test_a_successor_replaces_the_socket_in_one_step(start_server: Start, command: list[str], predecessor: str) -> None:
    """The path is never without a socket with ours, whoever left one there; stock removes it and then makes another."""
    before = start_server(command=command)
    if predecessor == "stale":
        before.stop(signal.SIGKILL)
    with DirectoryWatch(before.path.parent) as watch:
        start_server(command=command)
        before.stop()
        changes = watch.changes_of(before.path.name)
    assert changes == (["moved here"] if command is OURS else ["deleted", "created"])
