"""What stock kong-pdk does wrong for a metering plugin, on both servers: stock must show the failure, ours must not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_server_client import ClosedWithoutAnswer, Connection, NotMessagePack, Refused, Run, Worker, pack
from plugin_server_probe import pack_script
from plugin_server_process import OURS, STOCK, STOCK_GEVENT, Pipe, ServerProcess
from plugin_server_recordings import events_of, put_id

Start = Callable[..., ServerProcess]
GET = ["kong.request.get_method", []]
SHORT_S = 0.6  # how long a test waits for an answer that never comes


def failed_closed(run: Run) -> bool:
    return run.exit is not None and run.exit[0] == 503


def handle(instance_id: object, phase: str = "access", msgid: int = 7) -> bytes:
    return pack([0, msgid, "plugin.HandleEvent", [{"InstanceId": instance_id, "EventName": phase}]])


@pytest.mark.parametrize("first", [[], [GET]], ids=["before the first PDK call", "after a PDK call"])
@pytest.mark.parametrize("failure", ["!raise", "!sys.exit"])
def test_an_exception_ends_its_own_request_only(worker: Worker, first: list[Any], failure: str) -> None:
    """The request ends with 503, Kong's error log says why, and the next one is served."""
    broken = worker.start(script=pack_script(access=[*first, [failure, []]]))
    healthy = worker.start(script=pack_script(access=[GET]))
    run = worker.run(broken)
    assert failed_closed(run)
    method, (text,) = run.calls[-1]
    assert method == "kong.log.err"
    assert text.startswith("probe in access: ")
    assert worker.run(healthy).calls == [("kong.request.get_method", [])]


def test_stock_hangs_after_an_exception_before_the_first_call(start_server: Start) -> None:
    stock = Worker(start_server(command=STOCK_GEVENT).path, timeout_s=SHORT_S)
    broken = stock.start(script=pack_script(access=[["!raise", []]]))
    healthy = stock.start(script=pack_script(access=[GET]))
    with pytest.raises(TimeoutError):
        stock.run(broken)
    with pytest.raises(TimeoutError):  # another connection, another instance: the lock is held for good
        Worker(stock._path, timeout_s=SHORT_S).run(healthy)


def test_stock_leaves_a_dead_connection_after_an_exception_after_a_call(start_server: Start) -> None:
    stock = Worker(start_server(command=STOCK_GEVENT).path, timeout_s=SHORT_S)
    broken = stock.start(script=pack_script(access=[GET, ["!raise", []]]))
    healthy = stock.start(script=pack_script(access=[GET]))
    for instance in (broken, healthy):
        with pytest.raises(TimeoutError):
            stock.run(instance)


def test_stock_ends_on_sys_exit(start_server: Start) -> None:
    server = start_server(command=STOCK_GEVENT)
    stock = Worker(server.path, timeout_s=5)
    with pytest.raises((ClosedWithoutAnswer, TimeoutError)):
        stock.run(stock.start(script=pack_script(access=[["!sys.exit", []]])))
    assert server.process.wait(5) == 3


def test_an_exception_in_the_log_phase_is_an_error_in_kongs_log(worker: Worker) -> None:
    """Kong logs an error response at error level; there is no request left to end."""
    instance = worker.start(script=pack_script(log=[["!raise", ["what the request said"]]]))
    with pytest.raises(Refused, match=r"^probe in log: ValueError at plugin_server_probe\.py:\d+ in _own$"):
        worker.run(instance, "log")


def test_an_error_never_makes_kong_start_the_instance_again(worker: Worker) -> None:
    """Kong searches error texts for "no plugin instance" and would go on without limit."""
    instance = worker.start(script=pack_script(init=[], access=[]))
    assert worker.run(instance).exit is None
    with pytest.raises(Refused) as refused:
        worker.start(script=pack_script(init=[["!raise", ["No Plugin Instance today"]]]))
    assert "no plugin instance" not in str(refused.value).lower()


def test_a_plugin_may_fail_open(start_server: Start) -> None:
    """ON_ERROR = "open": an error response, on which Kong goes on without the plugin."""
    server = start_server("--plugin", "plugin_server_open", "--socket-name", "probe.sock")
    client = Worker(server.path, plugin="open-probe")
    with pytest.raises(Refused, match="open-probe in access: ValueError"):
        client.run(client.start(script=pack_script(access=[["!raise", []]])))


def test_init_failing_is_a_readable_error_without_secrets(ours: ServerProcess, worker: Worker) -> None:
    """Kong writes the text to its log and answers 500; a value that the schema marks as a secret is not in it."""
    with pytest.raises(Refused, match=r"probe: ValueError: cannot use \*\*\*"):
        worker.start(script=pack_script(init=[["!raise-with-secret", []]]), secret="sk-the-secret")
    line = ours.wait_line("cannot use")
    assert line.startswith("[error] ")
    assert not any("sk-the-secret" in line for line in ours.lines)


HOSTILE = [
    "utf8-get-header",
    "utf8-get-headers",
    "utf8-serialize",
    "utf8-query-path",
    "latin1-header",
    "method-header",
    "method-header-step",
    "method-header-dup",
    "method-query",
    "method-query-flag",
    "method-ctx",
    "method-body",
]


@pytest.fixture(scope="module")
def stock_gevent(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = ServerProcess(STOCK_GEVENT, tmp_path_factory.mktemp("stock")).wait_ready()
    yield server
    server.stop()


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("server", ["ours", "stock_gevent"])
def test_what_a_client_sends_never_breaks_an_event(request: pytest.FixtureRequest, server: str, case: str) -> None:
    """Invalid UTF-8 and keys named `_method`, as recorded: ours goes on with the event, stock drops or refuses it."""
    path = request.getfixturevalue(server).path
    client, connection = Worker(path), Connection(path, 5)
    failures = 0
    for event in events_of("05-hostile.jsonl", case):
        instance = client.start(script=pack_script(**{event.phase: event.script}))
        raw = put_id(event.frames[0].raw, "InstanceId", event.instance_id, instance)
        try:
            for number, frame in enumerate(event.frames):
                if number:
                    raw = put_id(frame.raw, "EventId", frame.value[3][0]["EventId"], answer[3]["EventId"])  # noqa: F821
                answer = connection.exchange(raw)
                failures += answer[2] is not None
                if answer[2] is not None:
                    break
        except ClosedWithoutAnswer:
            failures += 1
            connection = Connection(path, 5)
    assert bool(failures) == (server == "stock_gevent")


def test_header_bytes_go_through_unharmed(worker: Worker) -> None:
    """Bytes that are no UTF-8 reach the plugin as surrogates and go back to Kong as the bytes they were."""
    instance = worker.start(script=pack_script(access=[["kong.request.get_header", ["x"]], ["!echo", []]]))
    run = worker.run(instance, pdk=lambda method, _: b"v\xff\x80".decode("utf-8", "surrogateescape"))
    assert run.calls[1] == ("kong.ctx.shared.set", ["echo", "v\udcff\udc80"])


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_after_a_restart_no_row_runs_with_anothers_config(start_server: Start, command: list[str]) -> None:
    """Row B starts first on the new process; row A's old id must not name it (06 restart-stale-id)."""
    tagged = pack_script(access=[["!tag", []]])
    before = start_server(command=command)
    row_a = Worker(before.path).start(tag="A", script=tagged)
    before.stop()
    worker = Worker(start_server(command=command).path)
    row_b = worker.start(tag="B", script=tagged)
    if command is OURS:
        with pytest.raises(Refused, match="no plugin instance"):
            worker.run(row_a)
        assert worker.start(tag="A", script=tagged) == row_a != row_b
        assert worker.run(row_a).calls == [("kong.ctx.shared.set", ["tag", "A"])]
    else:
        assert worker.run(row_a).calls == [("kong.ctx.shared.set", ["tag", "B"])]


def test_a_step_of_a_process_before_is_refused_closed(start_server: Start) -> None:
    """Event ids do not begin anew: a Step that outlived its process ends its request instead of joining another's."""
    first = start_server("--drain-timeout", "0.1")
    instance = Worker(first.path).start(script=pack_script(access=[GET]))
    event_id = Connection(first.path, 5).exchange(handle(instance))[3]["EventId"]
    first.stop()
    client = Worker(start_server("--drain-timeout", "0.1").path)
    client.start(script=pack_script(access=[GET]))
    busy = Connection(client._path, 5).exchange(handle(instance))[3]["EventId"]
    assert abs(busy - event_id) > 1000
    assert client.call("plugin.Step", {"EventId": event_id, "Data": "mine"})["Data"]["Args"][0] == 503


def _rss_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_denials_leave_nothing_behind(start_server: Start, command: list[str]) -> None:
    """Memory after 1,000 more kong.response.exit; stock keeps 8-10 KB of each."""
    server = start_server(command=command)
    client = Worker(server.path)
    instance = client.start(script=pack_script(access=[["kong.response.exit", [429, "spent"]]]))
    connection = Connection(server.path, 5)
    frame = handle(instance)
    sizes = []
    for _ in range(2):
        for _ in range(1000):
            connection.exchange(frame)
        sizes.append(_rss_kib(server.process.pid))
    grown = sizes[1] - sizes[0]
    assert grown < 1000 if command is OURS else grown > 4000


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_nothing_runs_after_exit(start_server: Start, tmp_path: Path, command: list[str]) -> None:
    """Code after kong.response.exit does not run, in stock it does."""
    client = Worker(start_server(command=command).path)
    ran = tmp_path / "ran"
    script = pack_script(access=[["kong.response.exit", [429, "no"]], ["!touch", [str(ran)]]])
    assert client.run(client.start(script=script)).exit[0] == 429
    client.run(client.start())  # stock's greenlet has had its turn by now
    assert ran.exists() == (command is not OURS)


def test_exit_stands_even_if_swallowed(worker: Worker) -> None:
    """A plugin that catches everything cannot take back its exit or call Kong after it."""
    run = worker.run(worker.start(script=pack_script(access=[["!swallow", []]])))
    assert run.calls == []
    assert run.exit[0] == 429


@pytest.mark.parametrize("first", [[], [GET]], ids=["before the first PDK call", "after a PDK call"])
@pytest.mark.parametrize("command", [OURS, STOCK, STOCK_GEVENT], ids=["ours", "stock-threads", "stock-gevent"])
def test_a_waiting_event_stops_no_other(
    start_server: Start, tmp_path: Path, command: list[str], first: list[Any]
) -> None:
    """Stock holds a lock while an event has made no PDK call yet, and with gevent a blocking call stops everything."""
    server = (
        start_server("--drain-timeout", "0.1", command=command) if command is OURS else start_server(command=command)
    )
    client = Worker(server.path, timeout_s=SHORT_S if command is not OURS else 5)
    pipe = Pipe(tmp_path / "pipe")
    slow = client.start(script=pack_script(access=[*first, ["!touch", [str(pipe.path)]], ["!wait", [3]]]))
    quick = client.start(script=pack_script(access=[GET]))
    waiting = Connection(server.path, 5)
    waiting.send(handle(slow))
    if first:
        waiting.send(pack([0, 8, "plugin.Step", [{"EventId": waiting.receive_answer()[3]["EventId"]}]]))
    assert pipe.wait() == "x"  # the slow event is in its wait now
    hangs = command is STOCK_GEVENT or (command is STOCK and not first)
    if hangs:
        with pytest.raises(TimeoutError):
            client.run(quick)
    else:
        assert client.run(quick).calls == [("kong.request.get_method", [])]


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_big_frames_arrive_whole(start_server: Start, command: list[str]) -> None:
    """2 MB in one PDK call's argument: more than a socket's buffer."""
    size = 2 << 20
    body = "b" * size
    client = Worker(start_server(command=command).path, timeout_s=SHORT_S if command is not OURS else 10)
    instance = client.start(script=pack_script(access=[["!big", [size]]]))
    if command is OURS:
        assert client.run(instance).calls == [("kong.service.request.set_raw_body", [body])]
        got = client.start(script=pack_script(access=[["kong.request.get_raw_body", [0]], ["!echo", []]]))
        assert client.run(got, pdk=lambda *_: body.encode()).calls[1][1][1] == body.encode()
    else:
        with pytest.raises(TimeoutError):
            client.run(instance)


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_a_late_answer_is_never_read_by_the_next_request(start_server: Start, command: list[str]) -> None:
    """Kong gave up reading and reuses the connection (06 fake-late-crosstalk): the next request gets its own answer."""
    client = Worker(start_server(command=command).path, timeout_s=0.3)
    late = client.start(tag="late", script=pack_script(access=[["!wait", [0.6]], ["!tag", []]]))
    # Ends after the late one would have answered.
    innocent = client.start(tag="innocent", script=pack_script(access=[["!wait", [0.6]], ["!tag", []]]))
    with pytest.raises(TimeoutError):
        client.run(late)
    assert client.connections == 1  # the one the late event came on
    client._pool[0]._sock.settimeout(5)
    if command is OURS:
        assert client.run(innocent).calls == [("kong.ctx.shared.set", ["tag", "innocent"])]
    else:
        with pytest.raises(AssertionError, match="unexpected RPC response ID"):
            client.run(innocent)


def test_an_overdue_event_closes_its_connection_and_unwinds(start_server: Start, tmp_path: Path) -> None:
    """At the deadline the connection breaks off so that Kong fails closed, `finally` runs, its PDK call is not sent."""
    server = start_server("--event-deadline", "0.2")
    client = Worker(server.path)
    pipe = Pipe(tmp_path / "pipe")
    instance = client.start(script=pack_script(access=[GET, ["!finally", [str(pipe.path), 30]]]))
    with pytest.raises(NotMessagePack):
        client.run(instance)
    assert pipe.wait() == "x"
    server.wait_line("probe in access: no answer in 0.2 s")
    assert client.run(client.start()).exit is None


@pytest.mark.parametrize("command", [OURS, STOCK_GEVENT], ids=["ours", "stock"])
def test_events_that_kong_abandons_are_freed(start_server: Start, command: list[str]) -> None:
    """A PDK call that throws in Lua (02 lua-error) is never followed by a Step: after a while the event is gone."""
    options = ("-v", "--event-ttl", "0.2") if command is OURS else ()
    server = start_server(*options, command=command)
    client = Worker(server.path)
    (event, *_) = events_of("02-access-calls.jsonl", "lua-error")
    instance = client.start(script=pack_script(access=event.script))
    connection = Connection(server.path, 5)
    answer = connection.exchange(put_id(event.frames[0].raw, "InstanceId", event.instance_id, instance))
    connection.close()
    step = {"EventId": answer[3]["EventId"]}
    if command is OURS:
        server.wait_line("Kong did not go on with it")
        assert client.call("plugin.Step", step)["Data"]["Args"][0] == 503
    else:
        assert client.call("plugin.Step", step)["Data"] == "ret"  # however late


def test_an_argument_that_cannot_be_sent_fails_in_the_plugin(ours: ServerProcess, worker: Worker) -> None:
    """The exception is raised at the call; unhandled, it is like any other."""
    assert failed_closed(worker.run(worker.start(script=pack_script(access=[["!set-object", []]]))))
    ours.wait_line("kong.ctx.shared.set: an argument cannot be sent to Kong")


def test_an_exit_that_cannot_be_sent_fails_closed(worker: Worker) -> None:
    """A body that MessagePack cannot carry does not let the request through."""
    assert failed_closed(worker.run(worker.start(script=pack_script(access=[["!exit-object", []]]))))
