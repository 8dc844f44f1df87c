"""A plugin server's life: instances over reloads, workers and restarts; start and drain."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_server_client import ClosedWithoutAnswer, Connection, NotMessagePack, Refused, Worker, pack
from plugin_server_probe import pack_script
from plugin_server_process import OURS, STOCK_GEVENT, Pipe, ServerProcess
from plugin_server_recordings import frames_of, put_id

from tests.chaos.parts import wait_for

Start = Callable[..., ServerProcess]
GET = ["kong.request.get_method", []]


class RecordedWorker:
    """Sends recorded frames, with the ids of this server in place of the recorded ones."""

    def __init__(self, path: Path) -> None:
        self._connection = Connection(path, 5)
        self._ids: dict[Any, Any] = {}
        self.failures: list[str] = []

    def play(self, file: str, case: str) -> dict[Any, Any]:
        """The case's StartInstance, CloseInstance and HandleEvent frames. Returns recorded ids and ours."""
        for frame in frames_of(file)[case]:
            method, argument = frame.value[2], frame.value[3][0]
            raw = frame.raw
            if method == "plugin.HandleEvent":
                raw = put_id(raw, "InstanceId", argument["InstanceId"], self._ids[argument["InstanceId"]])
            elif method == "plugin.CloseInstance":
                raw = pack([*frame.value[:3], [self._ids[argument]]])
            answer = self._connection.exchange(raw)
            if answer[2] is not None:
                self.failures.append(answer[2])
            elif method == "plugin.StartInstance":
                assert frame.answer is not None
                recorded = Connection._fresh()
                recorded.feed(frame.answer)
                self._ids[next(recorded)[3]["Id"]] = answer[3]["Id"]
        return dict(self._ids)


def test_reloads_of_the_same_config_keep_the_instance(ours: ServerProcess) -> None:
    """Kong starts the new load's instance, closes the old one's, goes on: no event ever meets a missing instance."""
    worker = RecordedWorker(ours.path)
    for case in ("first-request-service-row", "first-request-consumer-row", "first-request-global-row"):
        ids = worker.play("01-start-and-config.jsonl", case)
    assert len(set(ids.values())) == 3  # three rows
    ids = worker.play("01-start-and-config.jsonl", "after-same-config")
    assert ids[3] == ids[0]
    for case in ("after-changed-config-a", "after-changed-config-b", "after-row-removed-a"):
        ids = worker.play("01-start-and-config.jsonl", case)
    assert ids[4] != ids[3]  # its limit was changed
    assert ids[5] == ids[1]  # its row was not
    ids = worker.play("01-start-and-config.jsonl", "after-reload-a")
    assert worker.failures == []
    assert set(ids.values()) == {ids[0], ids[1], ids[2], ids[4]}


def test_two_workers_share_a_row_and_may_close_it_at_different_times(start_server: Start, tmp_path: Path) -> None:
    """The first worker's CloseInstance leaves the instance to the second; the last one's ends it."""
    server = start_server()
    closed = Pipe(tmp_path / "closed")
    script = pack_script(access=[GET], close=[["!touch", [str(closed.path)]]])
    one, two = Worker(server.path), Worker(server.path)
    instance = one.start(tag="x", script=script, __seq__=27)
    assert two.start(tag="x", script=script, __seq__=31) == instance
    one.call("plugin.CloseInstance", instance)
    assert two.run(instance).exit is None
    assert closed.is_empty()
    two.call("plugin.CloseInstance", instance)
    assert closed.wait() == "x"
    with pytest.raises(Refused, match="no plugin instance"):
        two.run(instance)


def test_workers_that_start_a_row_at_once_make_one_instance(start_server: Start, tmp_path: Path) -> None:
    """Both get the same id, and the plugin's __init__ runs once."""
    server = start_server()
    made = tmp_path / "made"
    script = pack_script(init=[["!touch", [str(made)]], ["!wait", [0.3]]])
    frame = pack([0, 1, "plugin.StartInstance", [{"Name": "probe", "Config": json.dumps({"script": script})}]])
    connections = [Connection(server.path, 5) for _ in range(5)]
    for connection in connections:
        connection.send(frame)
    assert len({connection.receive_answer()[3]["Id"] for connection in connections}) == 1
    assert made.read_text() == "x"


def test_replays_two_workers(ours: ServerProcess) -> None:
    """08: each worker starts the row by itself; here both get one id, before and after a restart of the server."""
    starts = [f for f in frames_of("08-two-workers.jsonl")["spread"] if f.value[2] == "plugin.StartInstance"]
    assert len(starts) == 2
    assert len({Connection(ours.path, 5).exchange(f.raw)[3]["Id"] for f in starts}) == 1


def test_instances_nobody_closes_are_bounded(start_server: Start, tmp_path: Path) -> None:
    """Kong never closes the instance of a removed row: the one unused for longest goes, and is closed."""
    client = Worker(start_server("--max-instances", "2").path)
    closed = Pipe(tmp_path / "closed")
    first = client.start(tag="1", script=pack_script(close=[["!touch", [str(closed.path)]]]))
    second, third = client.start(tag="2"), client.start(tag="3")
    assert closed.wait() == "x"
    with pytest.raises(Refused, match="no plugin instance"):
        client.run(first)
    client.run(second)
    client.run(third)


def test_instances_nobody_uses_are_dropped(start_server: Start) -> None:
    server = start_server("--instance-idle", "0.2")
    client = Worker(server.path)
    instance = client.start()
    server.wait_line("dropped: idle")
    with pytest.raises(Refused, match="no plugin instance"):
        client.run(instance)


def test_an_instance_is_closed_after_its_last_event(start_server: Start, tmp_path: Path) -> None:
    """CloseInstance while an event is under way: the event ends first, new ones find no instance."""
    client = Worker(start_server().path)
    closed = Pipe(tmp_path / "closed")
    instance = client.start(script=pack_script(access=[GET], close=[["!touch", [str(closed.path)]]]))
    answer = client.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
    client.call("plugin.CloseInstance", instance)
    with pytest.raises(Refused, match="no plugin instance"):
        client.run(instance)
    assert closed.is_empty()
    assert client.call("plugin.Step", {"EventId": answer["EventId"]})["Data"] == "ret"
    assert closed.wait() == "x"


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_a_process_announces_its_pid_once_on_each_connection(start_server: Start, command: list[str]) -> None:
    """A changed pid makes Kong forget its instances (06 fake-pid-2); stock never sends it."""
    server = start_server(command=command)
    client = Worker(server.path)
    instance = client.start()
    client.run(instance)
    client.run(instance)
    assert client.pids == ([server.process.pid] if command is OURS else [])
    if command is OURS:
        again = Worker(server.path)
        with pytest.raises(Refused):
            again.run("probe-0123")  # "no plugin instance" comes with the pid too
        assert again.pids == [server.process.pid]


def test_plugins_on_one_socket_each_learn_the_pid(start_server: Start) -> None:
    """Kong keeps the pid for each plugin, over connections that the plugins share."""
    server = start_server("--plugin", "plugin_server_open")
    worker = Worker(server.path)
    first = worker.start()
    worker.plugin = "open-probe"
    second = worker.start()
    assert worker.connections == 1
    assert first.startswith("probe-")
    assert second.startswith("open-probe-")
    assert worker.pids == [server.process.pid] * 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xc1\xc1",
        b"\x93\x02\x01\x01",
        pack([0, 1, "plugin.HandleEvent"]),
        pack([]),
        b"\x91" * 2000,
    ],
    ids=["http", "c1", "short", "no-arguments", "empty", "nested"],
)
def test_bad_frames_cost_their_own_connection_only(ours: ServerProcess, worker: Worker, garbage: bytes) -> None:
    """The answer is one that Kong's reader throws on (500); closing alone would let a request pass."""
    instance = worker.start(script=pack_script(access=[GET]))
    worker.run(instance)
    connection = Connection(ours.path, 5)
    with pytest.raises(NotMessagePack):
        connection.exchange(garbage)
    assert connection.was_closed()
    assert worker.run(instance).calls == [("kong.request.get_method", [])]


@pytest.mark.parametrize(
    ("method", "argument", "text"),
    [
        ("plugin.HandleEvent", {"InstanceId": 0, "EventName": "access"}, "no plugin instance 0"),
        ("plugin.HandleEvent", {"EventName": "access"}, "no plugin instance None"),
        ("plugin.HandleEvent", {"InstanceId": ["x"], "EventName": "access"}, "no plugin instance"),
        ("plugin.CloseInstance", 17, "no plugin instance 17"),
        ("plugin.CloseInstance", {}, "no plugin instance"),
        ("plugin.StartInstance", {"Name": "other", "Config": "{}"}, "this server serves probe"),
        ("plugin.StartInstance", {"Name": "probe", "Config": "[]"}, "config is not a JSON object"),
        ("plugin.StartInstance", {"Name": "probe", "Config": "{"}, "probe: JSONDecodeError"),
        ("plugin.Nope", {}, "StartInstance, CloseInstance"),
        (["plugin.A"], {}, "StartInstance, CloseInstance"),
    ],
)
def test_requests_that_cannot_be_served_are_errors_in_words(
    worker: Worker, method: object, argument: object, text: str
) -> None:
    with pytest.raises(Refused, match=text):
        worker.call(method, argument)


@pytest.mark.parametrize("phase", ["__init__", "close", "certificate", "", None, 3, "config"])
def test_only_phases_can_be_called(worker: Worker, phase: Any) -> None:
    """An event's name never reaches another attribute of the plugin."""
    with pytest.raises(Refused, match="no such phase"):
        worker.run(worker.start(), phase)


def test_a_drain_ends_what_runs_and_starts_nothing(start_server: Start, tmp_path: Path) -> None:
    """After SIGTERM: Steps are served (also over a new connection), log phases too, new requests are sent elsewhere."""
    server = start_server()
    client = Worker(server.path)
    closed = tmp_path / "closed"
    script = pack_script(access=[GET, GET], log=[GET], close=[["!touch", [str(closed)]]])
    instance = client.start(script=script)
    answer = client.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
    server.process.send_signal(signal.SIGTERM)
    server.wait_line("ending: 1 events under way")
    fresh = Worker(server.path)
    with pytest.raises(Refused, match="no plugin instance"):
        fresh.run(instance)
    with pytest.raises((ClosedWithoutAnswer, ConnectionResetError)):
        fresh.run(instance)  # on the same connection, which the server closed
    with pytest.raises(Refused, match="ending"):
        fresh.start(script=script)
    assert Worker(server.path).run(instance, "log").calls == [("kong.request.get_method", [])]
    step = {"EventId": answer["EventId"]}
    assert Worker(server.path).call("plugin.Step", step)["Data"]["Method"] == "kong.request.get_method"
    assert client.call("plugin.Step", step)["Data"] == "ret"
    assert server.process.wait(5) == 0
    assert closed.read_text() == "x"
    assert not server.path.exists()
    assert not list(server.path.parent.glob(".*.sock"))


def test_a_drain_is_bounded(start_server: Start) -> None:
    server = start_server("--drain-timeout", "0.1")
    client = Worker(server.path)
    instance = client.start(script=pack_script(access=[["!wait", [30]]]))
    Connection(server.path, 5).send(
        pack([0, 1, "plugin.HandleEvent", [{"InstanceId": instance, "EventName": "access"}]])
    )
    client.run(instance, "log")  # the waiting event was read before
    assert server.stop() == 0
    server.wait_line("ending with 1 events under way")


def test_a_socket_that_somebody_removed_is_there_again(start_server: Start, tmp_path: Path) -> None:
    """Kong would not start a server again that runs. Connections that there are go on, new ones come through, and at
    the end nothing is left; where it cannot be made, that is tried again."""
    server = start_server("--socket-mode", "0660")
    before = Worker(server.path)
    instance = before.start()
    server.path.unlink()
    server.wait_line("it is there again")
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    after = Worker(server.path)
    assert (before.run(instance).exit, after.run(after.start()).exit) == (None, None)
    assert after.pids == [server.process.pid]

    aside = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-aside"))
    (aside / server.path.name).unlink()
    server.wait_line("cannot be made again")
    aside.rename(tmp_path)
    wait_for(server.path.exists, "the socket is there again")
    again = Worker(server.path)
    assert again.run(again.start()).exit is None
    assert server.stop() == 0
    assert [entry.name for entry in tmp_path.iterdir() if "sock" in entry.name] == []


@pytest.mark.parametrize(("mode", "expected"), [((), 0o600), (("--socket-mode", "0660"), 0o660)])
def test_the_sockets_permissions(start_server: Start, mode: tuple[str, ...], expected: int) -> None:
    assert stat.S_IMODE(start_server(*mode).path.stat().st_mode) == expected
