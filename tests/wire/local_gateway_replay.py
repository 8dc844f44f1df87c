"""Plays a recorded case against the local gateway: the client's bytes in, the plugin server's and the upstream's
answers as recorded, and what the gateway said to all three kept for comparison."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgpack

from kong_plugins.adapters.deck_file import read_deck
from kong_plugins.local_gateway.gateway import GatewayOptions, LocalGateway

DATA = Path(__file__).parents[1] / "data" / "kong" / "exchanges"
LUA = Path(__file__).parent / "lua"
KONG_ADDS = (
    "server",
    "via",
    "connection",
    "x-kong-",
    "x-tap",
    "x-ratelimit",
    "x-py",
    "x-r",
    "date",
    "transfer-encoding",
)
WAIT_S = 10.0


@dataclass
class Case:
    """One recorded case. ``calls`` are the frames Kong sent with the answers it got (None: no answer came)."""

    name: str
    request: bytes
    calls: list[tuple[dict[str, Any], list[bytes] | None]] = field(default_factory=list)
    upstream: list[dict[str, Any]] = field(default_factory=list)
    client: dict[str, Any] = field(default_factory=dict)


def setup_of(recording: str) -> dict[str, Any]:
    """A recording's setup: Kong's configuration."""
    return next(event for event in events(recording) if event["ev"] == "setup")


def events(recording: str) -> Iterator[dict[str, Any]]:
    with (DATA / f"{recording}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def cases(recording: str) -> dict[str, Case]:
    """The cases of a recording, by name."""
    result: dict[str, Case] = {}
    case = Case("", b"")
    sent: dict[tuple[int, int], list[bytes]] = {}
    for event in events(recording):
        if event["ev"] == "case":
            case = Case(event["name"], base64.b64decode(event.get("request_b64") or ""))
            result[case.name] = case
            sent = {}
        elif event["ev"] == "frame" and event["dir"] == "kong->server":
            answers: list[bytes] = []
            decoded = unpack(base64.b64decode(event["b64"]))
            case.calls.append(({"method": decoded[2], "argument": decoded[3][0], "msgid": decoded[1]}, answers))
            sent[event["conn"], decoded[1]] = answers
            case.__dict__["last"] = answers
        elif event["ev"] == "frame":
            decoded = unpack(base64.b64decode(event["b64"]))
            target = sent.get((event["conn"], decoded[1])) if isinstance(decoded, list) else None
            (target if target is not None else case.__dict__.get("last", [])).append(base64.b64decode(event["b64"]))
        elif event["ev"] == "upstream":
            case.upstream.append(event)
        elif event["ev"] == "client":
            case.client = event
    return result


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=False, unicode_errors="surrogateescape")


class ReplayServer:
    """A plugin server that answers as recorded, whatever instance ids and message ids are now."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.pending: list[tuple[dict[str, Any], list[bytes] | None]] = []
        self.received: list[dict[str, Any]] = []
        self.log_done = asyncio.Event()
        self.connections: list[tuple[Any, asyncio.StreamWriter]] = []

    def play(self, case: Case) -> None:
        self.case, self.pending, self.received = case, list(case.calls), []
        self.log_done = asyncio.Event()
        if not self.pending:
            self.log_done.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append((asyncio.current_task(), writer))
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                unpacker.feed(data)
                for message in unpacker:
                    for answer in self._answers(message):
                        writer.write(answer)
                    if not self.pending:
                        self.log_done.set()
        writer.close()

    def _answers(self, message: list[Any]) -> list[bytes]:
        _, msgid, method, arguments = message
        expected = self.pending[0][0] if self.pending else {}
        self.received.append({"method": method, "argument": arguments[0]})
        if method == "plugin.CloseInstance" and expected.get("method") != method:
            self.received.pop()
            return [msgpack.packb([1, msgid, None, {}])]
        if method == "plugin.StartInstance" and expected.get("method") != method:
            self.received.pop()
            return [msgpack.packb([1, msgid, None, {"Id": expected.get("argument", {}).get("InstanceId", 0)}])]
        if not self.pending:
            return []
        recorded = self.pending.pop(0)[1] or []
        answers = []
        for raw in recorded:
            decoded = unpack(raw)
            if isinstance(decoded, list) and decoded[0] == 1 and decoded[1] == expected["msgid"]:
                decoded[1] = msgid
                answers.append(msgpack.packb(decoded, unicode_errors="surrogateescape"))
            else:
                answers.append(raw)
        return answers


class StubUpstream:
    """Answers a request as the recorded upstream did, told from what the recorded client got and the model's name."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.requests: list[tuple[str, bytes]] = []
        self.connections: list[tuple[Any, asyncio.StreamWriter]] = []
        self.connection_closed = asyncio.Event()
        self.got_request = asyncio.Event()

    def play(self, case: Case) -> None:
        self.case, self.requests = case, []
        self.connection_closed = asyncio.Event()
        self.got_request = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append((asyncio.current_task(), writer))
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4]
                length = next(
                    (int(line[15:]) for line in head.split("\r\n") if line.lower()[:15] == "content-length:"), 0
                )
                body = await reader.readexactly(length)
                self.requests.append((head, body))
                self.got_request.set()
                if not await self._answer(head, body, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connection_closed.set()
            writer.close()

    async def _answer(self, head: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        assert self.case is not None
        recorded = self.case.client
        if b'"hang"' in body:
            await reader.read()
            return False
        if b'"reset"' in body:
            return False
        status = recorded.get("status") or 200
        headers = [
            (name, value)
            for name, value in recorded.get("headers", [])
            if not name.lower().startswith(KONG_ADDS) or name.lower() == "retry-after"
        ]
        if isinstance(status, list) or not headers:
            status, headers = 200, [("Content-Type", "application/json"), ("X-Up", "1")]
        content = (recorded.get("body") or "{}").encode()
        chunks = recorded.get("chunks")
        streamed = any(name.lower() == "content-type" and "event-stream" in value for name, value in headers)
        if b'"slow"' in body or streamed or chunks:
            headers = [pair for pair in headers if pair[0].lower() != "content-length"] + [
                ("Transfer-Encoding", "chunked")
            ]
            self._head(writer, status, headers)
            position = 0
            for size in chunks or [len(content)]:
                piece, position = content[position : position + size], position + size
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0.01)
            if b'"slow"' in body:
                await reader.read()
            if b'"cut"' in body or b'"slow"' in body:
                return False
            writer.write(b"0\r\n\r\n")
            return True
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(content))))
        self._head(writer, status, headers)
        writer.write(b"" if head.startswith("HEAD") else content)
        await writer.drain()
        return b'"halfbody"' not in body

    def _head(self, writer: asyncio.StreamWriter, status: int, headers: list[tuple[str, str]]) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())


@dataclass
class Answer:
    """What the client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[int]


async def ask(port: int, request: bytes) -> Answer:
    """Sends raw bytes and reads one answer to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    raw = await asyncio.wait_for(reader.read(-1), WAIT_S)
    writer.close()
    return parse(raw)


def parse(raw: bytes) -> Answer:
    while raw.startswith(b"HTTP/1.1 100"):
        raw = raw.partition(b"\r\n\r\n")[2]
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
    chunks: list[int] = []
    if ("Transfer-Encoding", "chunked") in headers:
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length:
                chunks.append(length)
            body, rest = body + rest[:length], rest[length + 2 :]
    else:
        body = rest
    return Answer(int(lines[0].split(" ")[1]) if lines[0] else 0, headers, body, chunks)


class Stage:
    """The gateway between a replaying plugin server and a stub upstream."""

    def __init__(self) -> None:
        self.plugin = ReplayServer()
        self.upstream = StubUpstream()
        self.gateway: LocalGateway
        self.socket = ""
        self.url = ""

    def play(self, case: Case) -> None:
        self.plugin.play(case)
        self.upstream.play(case)

    async def logged(self) -> None:
        """Waits until every recorded frame has come."""
        await asyncio.wait_for(self.plugin.log_done.wait(), WAIT_S)


@contextlib.asynccontextmanager
async def stage(recording: str, read_timeout_s: float = 3.0) -> AsyncIterator[Stage]:
    """A gateway with a recording's configuration."""
    on = Stage()
    info = next(event for event in events("01-start-and-config") if event["ev"] == "plugin_info_dump")["json"][0]
    yml = setup_of(recording)["yml"].replace('          kong.log.set_serialize_value("llm.usage", usage)\n', "")
    upstream = await asyncio.start_server(on.upstream.serve, "127.0.0.1", 0)
    closed = await asyncio.start_server(on.upstream.serve, "127.0.0.1", 0)
    dead_port = closed.sockets[0].getsockname()[1]
    closed.close()
    on.url = url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        on.socket = str(Path(folder) / "probe.sock")
        plugin = await asyncio.start_unix_server(on.plugin.serve, on.socket)
        config = read_deck(yml, {})
        overrides = {service.name: url for service in config.services}
        overrides["dead"] = f"http://127.0.0.1:{dead_port}"
        config = config.with_upstreams(
            {name: to for name, to in overrides.items() if name in {s.name for s in config.services}}
        )
        options = GatewayOptions(
            port=0,
            plugins_dir=LUA,
            plugin_sockets={"probe": on.socket},
            plugin_infos={"probe": info},
            read_timeout_s=read_timeout_s,
            env={"LAB_SECRET": "sk-vaulted-xxxxx"},
            stop_timeout_s=1.0,
        )
        on.gateway = LocalGateway(config, options, logging.getLogger("test.gateway"))
        await on.gateway.start()
        try:
            yield on
        finally:
            await on.gateway.stop()
            plugin.close()
            upstream.close()
            for task, writer in on.plugin.connections + on.upstream.connections:
                writer.close()
                await asyncio.wait([task], timeout=WAIT_S)


def named(pairs: list[Any], leave_out: Mapping[str, str]) -> list[tuple[str, str]]:
    """Headers with the values that differ by nature replaced: name → what stands for it."""
    return [(name, leave_out.get(name.lower(), value)) for name, value in pairs]


# What differs between two runs by nature, and what stands for it in a comparison.
_TEXT = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "RANDOM-UUID"),
    (re.compile(r"(?<![0-9a-f-])[0-9a-f]{32}(?![0-9a-f])"), "REQUEST-ID"),
    (re.compile(r"(127\.0\.0\.1|api\.test|kong):\d{4,5}"), r"\1:PORT"),
    (re.compile(r"X-Forwarded-Port: \d+"), "X-Forwarded-Port: PORT"),
    (re.compile(r"(?i)(x-kong-\w+-latency): \d+"), r"\1: MS"),
    (re.compile(r"Date: .*"), "Date: DATE"),
)
_NUMBERS = frozenset(
    [
        "created_at",
        "updated_at",
        "started_at",
        "kong",
        "proxy",
        "receive",
        "request",
        "balancer_start",
        "balancer_start_ns",
        "balancer_latency",
        "balancer_latency_ns",
        "port",
        "__seq__",
        "x-kong-upstream-latency",
        "x-kong-proxy-latency",
        "x-kong-response-latency",
    ]
)


def alike(value: Any, key: str = "") -> Any:
    """A value with times, ports, latencies and random ids replaced; JSON texts of serialize() and Config are opened."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        if "__key__" in value:
            value = {name: item for name, item in value.items() if name != "InstanceId"}
        return {name: alike(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [alike(item, key) for item in value]
    if isinstance(value, str):
        if value.startswith('{"'):
            with contextlib.suppress(ValueError):
                return alike(json.loads(value))
        if key in _NUMBERS:
            return "NUMBER" if re.fullmatch(r"-?\d+", value) else value
        for pattern, stands in _TEXT:
            value = pattern.sub(stands, value)
        return value
    if key in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
        return "NUMBER" if value != -1 else -1
    return value


def differences(got: Any, recorded: Any, path: str = "") -> list[str]:
    """Where two values differ, one line each."""
    if isinstance(got, dict) and isinstance(recorded, dict):
        lines = []
        for name in sorted({*got, *recorded}, key=str):
            if name not in got or name not in recorded:
                lines.append(f"{path}.{name}: {'not there' if name not in got else 'not recorded'}")
            else:
                lines += differences(got[name], recorded[name], f"{path}.{name}")
        return lines
    if isinstance(got, list) and isinstance(recorded, list) and len(got) == len(recorded):
        return [
            line
            for n, pair in enumerate(zip(got, recorded, strict=True))
            for line in differences(*pair, f"{path}[{n}]")
        ]
    return [] if got == recorded else [f"{path}: {str(got)[:300]!r}, recorded {str(recorded)[:300]!r}"]
