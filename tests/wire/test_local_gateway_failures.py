"""What happens when the client, the upstream or the plugin server goes away. As in Kong, fail open included."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from local_gateway_replay import WAIT_S, Answer, Case, Stage, alike, ask, cases, differences, parse, stage

from kong_plugins.local_gateway.upstream import UpstreamConnection, UpstreamPool

SERIALIZED = Path(__file__).parents[1] / "data" / "kong" / "serialize"
Script = Callable[[Stage], Awaitable[None]]


def play(recording: str, script: Script, read_timeout_s: float = 0.3) -> None:
    async def run() -> None:
        async with stage(recording, read_timeout_s) as on:
            await asyncio.wait_for(script(on), 30)

    asyncio.run(run())


async def send(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    return reader, writer


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes as a killed client does: RST, not FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def serialized(on: Stage) -> dict[str, Any]:
    """What kong.log.serialize() gave the plugin in the log phase."""
    texts = [
        call["argument"]["Data"]
        for call in on.plugin.received
        if isinstance(call["argument"], dict) and str(call["argument"].get("Data", "")).startswith('{"')
    ]
    found: dict[str, Any] = json.loads(texts[-1])
    return found


@pytest.mark.parametrize("goes", ["reset", "close"])
def test_a_client_that_leaves_a_stream_ends_it_upstream_and_is_logged_as_200_without_an_end(goes: str) -> None:
    """The upstream's connection closes at once, log runs with status 200, and no body filter saw the end."""

    async def script(on: Stage) -> None:
        case = cases("04-log-phase")["499-abort-stream"]
        case.client = {**cases("04-log-phase")["200-sse"].client, "chunks": [216, 194]}
        on.play(case)
        reader, writer = await send(on.gateway.port, case.request)
        await reader.readuntil(b'"Hel"')
        gone = time.monotonic()
        reset(writer) if goes == "reset" else writer.close()
        await asyncio.wait_for(on.upstream.connection_closed.wait(), WAIT_S)
        await on.logged()
        assert time.monotonic() - gone < 1
        record = serialized(on)
        recorded = json.loads((SERIALIZED / "499-abort-stream.json").read_text())
        assert record["response"]["status"] == 200
        assert record["source"] == "upstream"
        left_out = ("request.size", "response.size", "request.headers.content-length")
        lines = differences(alike(record), alike(recorded))
        assert [line for line in lines if not any(name in line for name in left_out)] == []
        ends = [call["argument"].get("Data") for call in on.plugin.received[-4:] if isinstance(call["argument"], dict)]
        assert True not in ends  # bf_eof was never set

    play("04-log-phase", script)


def test_a_client_that_leaves_before_the_answer_is_a_499() -> None:
    """Status 499, upstream_status "-", source upstream; the upstream's connection closes; no body filter ran."""

    async def script(on: Stage) -> None:
        case = cases("04-log-phase")["499-abort-before-headers"]
        on.play(case)
        _, writer = await send(on.gateway.port, case.request)
        await asyncio.wait_for(on.upstream.got_request.wait(), WAIT_S)
        reset(writer)
        await on.logged()
        await asyncio.wait_for(on.upstream.connection_closed.wait(), WAIT_S)
        recorded = json.loads((SERIALIZED / "499-abort-before-headers.json").read_text())
        assert differences(alike(serialized(on)), alike(recorded)) == []
        assert alike(on.plugin.received[-1]) == alike(
            {"method": case.calls[-1][0]["method"], "argument": case.calls[-1][0]["argument"]}
        )

    play("04-log-phase", script)


@pytest.mark.parametrize("goes", ["reset", "close"])
def test_a_client_that_leaves_in_the_access_phase_leaves_the_log_phase_what_access_did(goes: str) -> None:
    """The access phase goes on to its end, nothing goes upstream, and log finds what access put down after the client
    had left: what a plugin held for the request is settled there or nowhere."""

    async def script(on: Stage) -> None:
        asked, left = asyncio.Event(), asyncio.Event()
        found: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        async def holds(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            on.plugin.connections.append((asyncio.current_task(), writer))
            unpacker = msgpack.Unpacker()
            while data := await reader.read(65536):
                unpacker.feed(data)
                for _, msgid, method, (argument,) in unpacker:
                    result: object = "ret"
                    if argument.get("EventName") == "access":
                        asked.set()
                        await left.wait()
                        result = {"Method": "kong.ctx.shared.set", "Args": ["hold", "open"]}
                    elif argument.get("EventName") == "log":
                        result = {"Method": "kong.ctx.shared.get", "Args": ["hold"]}
                    elif argument.get("EventId") == "log":
                        found.set_result(argument.get("Data"))
                    event_id = argument.get("EventName", argument.get("EventId"))
                    answer = {"Id": 1} if method == "plugin.StartInstance" else {"EventId": event_id, "Data": result}
                    writer.write(msgpack.packb([1, msgid, None, answer]))
            writer.close()

        Path(on.socket).unlink()
        async with await asyncio.start_unix_server(holds, on.socket):
            case = cases("04-log-phase")["200-json"]
            on.play(case)
            _, writer = await send(on.gateway.port, case.request)
            await asyncio.wait_for(asked.wait(), WAIT_S)
            reset(writer) if goes == "reset" else writer.close()
            (client,) = on.gateway._clients
            while not client.gone:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)  # whatever the gateway does about it, it has begun
            left.set()
            assert await asyncio.wait_for(found, WAIT_S) == "open"
            assert on.upstream.requests == []
            await on.gateway.stop()

    play("04-log-phase", script, read_timeout_s=WAIT_S)


class Reconnecting(UpstreamPool):
    """Every new connection after the first waits until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.wanted = asyncio.Event()
        self.may = asyncio.Event()

    async def connect(self, host: str, port: int, timeout_s: float, tls: bool) -> UpstreamConnection:
        self.opened += 1
        if self.opened > 1:
            self.wanted.set()
            await self.may.wait()
        return await super().connect(host, port, timeout_s, tls)


def test_a_client_that_leaves_while_a_kept_connection_is_replaced_is_logged_at_once() -> None:
    """The upstream closed the kept connection under the request; the client left before there was another: nothing is
    sent on that one, and nobody waits for the upstream's read timeout."""

    async def script(on: Stage) -> None:
        pool = on.gateway._upstreams = Reconnecting()
        case = cases("04-log-phase")["200-json"]
        assert (await first(on, case)).status == 200
        await on.logged()
        closing = case.request.replace(b'"m1"', b'"reset"').replace(b"Content-Length: 64", b"Content-Length: 67")
        on.play(Case("left", closing, case.calls, client=case.client))
        _, writer = await send(on.gateway.port, closing)
        await asyncio.wait_for(pool.wanted.wait(), WAIT_S)
        sent = len(on.upstream.requests)
        reset(writer)
        (client,) = on.gateway._clients
        while not client.gone:
            await asyncio.sleep(0.001)
        pool.may.set()
        await on.logged()
        assert serialized(on)["response"]["status"] == 499
        assert len(on.upstream.requests) == sent == 1

    play("04-log-phase", script)


def test_chunks_leave_one_by_one_as_they_come() -> None:
    """A chunk is with the client before the upstream sends the next one, and arrives as one chunk."""

    async def script(on: Stage) -> None:
        case = replace(cases("04-log-phase")["200-sse"])
        chunks = case.client["chunks"]
        on.play(case)
        answer = await ask(on.gateway.port, case.request)
        assert answer.chunks == chunks

    play("04-log-phase", script)


async def first(on: Stage, case: Case) -> Answer:
    on.play(case)
    return await ask(on.gateway.port, case.request)


async def gone(on: Stage) -> None:
    """The plugin server is not there any more: no socket, no connection."""
    Path(on.socket).unlink()
    for _, writer in on.plugin.connections:
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0)


def test_without_its_plugin_server_a_request_passes_when_the_instance_is_known_and_the_guard_catches_it() -> None:
    """Known instance: fail open, so the guard answers 503. Unknown instance: Kong's 500 before the guard."""

    async def script(on: Stage) -> None:
        recorded = cases("07-guard")
        assert (await first(on, recorded["ok-one-set"])).status == 200
        await on.logged()
        await gone(on)
        request = recorded["ok-one-set"].request
        down = await first(on, replace(recorded["server-down"], request=request))
        assert (down.status, alike(down.body)) == (503, alike(recorded["server-down"].client["body"]))
        assert ("X-Guard", "missing token_quota") in down.headers
        slow = request.replace(b"POST /v1/chat/completions", b"POST /slow/x")
        uncached = await first(on, replace(recorded["server-down-uncached"], request=slow))
        assert (uncached.status, alike(uncached.body)) == (500, alike(recorded["server-down-uncached"].client["body"]))
        assert on.upstream.requests == []

    play("07-guard", script)


def test_without_its_plugin_server_and_without_a_guard_a_request_passes() -> None:
    """That is why the guard exists."""

    async def script(on: Stage) -> None:
        recorded = cases("06-connections")
        assert (await first(on, recorded["cold"])).status == 200
        await on.logged()
        await gone(on)
        assert (await first(on, recorded["socket-missing"])).status == 200
        assert len(on.upstream.requests) == 1
        assert (await first(on, recorded["socket-missing-uncached"])).status == 500

    play("06-connections", script)


class Bytes:
    """A plugin server that answers every HandleEvent with the given bytes (None: never), ``{id}`` being the call's."""

    def __init__(self, answer: Callable[[int], bytes | None], close: bool = False) -> None:
        self.answer = answer
        self.close = close

    def __call__(self, message: list[Any]) -> list[bytes]:
        _, msgid, method, arguments = message
        if method == "plugin.StartInstance":
            return [msgpack.packb([1, msgid, None, {"Id": 1}])]
        if method != "plugin.HandleEvent" or arguments[0]["EventName"] == "log":
            return [msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": 1}])]
        answer = self.answer(msgid)
        return [] if answer is None else [answer]


HALF = msgpack.packb([1, 2, None, {"Data": "ret", "EventId": 1}])[:-3]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda msgid: None, 200),
        (lambda msgid: HALF, 500),
        (lambda msgid: b"\xc1\xc1", 500),
        (lambda msgid: b"HTTP/1.1 400 Bad Request\r\n\r\n", 500),
        (lambda msgid: msgpack.packb([1, msgid + 1, None, {"Data": "ret", "EventId": 1}]), 500),
        (lambda msgid: msgpack.packb([1, msgid, {"message": "broken"}, None]), 500),
        (lambda msgid: msgpack.packb([1, msgid, "broken", None]), 200),
        (lambda msgid: msgpack.packb([1, msgid, None, None]), 200),
        (lambda msgid: msgpack.packb([1, msgid, None, {"EventId": 1}]), 500),
    ],
    ids=["silence", "half", "c1", "http", "wrong id", "error map", "error text", "nil", "no data"],
)
def test_an_answer_kong_cannot_use_passes_or_fails_as_in_kong(
    answer: Callable[[int], bytes | None], status: int
) -> None:
    """Nothing, nil and error texts let the request through without the plugin; anything unusable is a 500."""

    async def script(on: Stage) -> None:
        on.plugin._answers = Bytes(answer)  # type: ignore[method-assign]
        assert (await first(on, cases("06-connections")["cold"])).status == status

    play("06-connections", script)


def test_a_late_answer_is_read_by_the_next_request_of_that_connection() -> None:
    """Request 1 times out and passes; request 2 takes its connection, reads the stale answer and gets a 500."""

    async def script(on: Stage) -> None:
        calls = 0
        connections: list[int] = []

        def answers(message: list[Any]) -> list[bytes]:
            nonlocal calls
            _, msgid, method, _ = message
            if method == "plugin.StartInstance":
                return [msgpack.packb([1, msgid, None, {"Id": 1}])]
            calls += 1
            if calls <= 2:
                connections.append(len(on.plugin.connections))
            ret = msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": 1}])
            # The first event is never answered in time; its answer comes right before the second one's.
            return [] if calls == 1 else [msgpack.packb([1, msgid - 1, None, {"Data": "ret", "EventId": 1}]), ret]

        on.plugin._answers = answers  # type: ignore[method-assign]
        case = cases("06-connections")["cold"]
        hanging = Case(
            "slow", case.request.replace(b'"m1"', b'"hang"').replace(b"Content-Length: 64", b"Content-Length: 66")
        )
        on.play(hanging)
        _, writer = await send(on.gateway.port, hanging.request)
        await asyncio.wait_for(on.upstream.got_request.wait(), WAIT_S)
        assert (await ask(on.gateway.port, case.request)).status == 500
        assert connections == [1, 1]  # the very connection the first request gave up on
        writer.close()

    play("06-connections", script)


def test_a_changed_server_pid_starts_every_instance_anew() -> None:
    """serverPid with another number forgets the instances; the same number does not."""

    async def script(on: Stage) -> None:
        recorded = cases("06-connections")
        started = []
        for name in ("fake-pid-1", "fake-pid-1-again", "fake-pid-2", "fake-pid-2-again"):
            await first(on, recorded[name])
            await on.logged()
            started.append(sum(call["method"] == "plugin.StartInstance" for call in on.plugin.received))
        expected = [
            sum(call["method"] == "plugin.StartInstance" for call, _ in recorded[name].calls)
            for name in ("fake-pid-1", "fake-pid-1-again", "fake-pid-2", "fake-pid-2-again")
        ]
        assert started == expected
        assert sum(started) > 0

    play("06-connections", script)


def test_two_requests_sent_at_once_are_answered_in_order_on_one_connection() -> None:
    """Pipelining, as recorded: the first request's answer comes first."""

    async def script(on: Stage) -> None:
        case = cases("05-hostile")["pipelined"]
        on.plugin._answers = Bytes(lambda msgid: msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": 1}]))  # type: ignore[method-assign]
        recorded = cases("04-log-phase")["200-json"]
        on.play(recorded)
        one = recorded.request.replace(b"Connection: close\r\n", b"")
        two = recorded.request.replace(b"Connection: close\r\n", b"X-Second: 1\r\nConnection: close\r\n")
        reader, writer = await send(on.gateway.port, one + two)
        raw = await asyncio.wait_for(reader.read(-1), WAIT_S)
        writer.close()
        assert raw.count(b"HTTP/1.1 200") == 2
        assert ["X-Second" in head for head, _ in on.upstream.requests] == [False, True]
        assert parse(raw).status == 200
        assert case is not None

    play("04-log-phase", script)
