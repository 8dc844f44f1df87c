"""The local gateway answers, frames and logs as Kong 3.9.1 was recorded to, case by case."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import pytest
from local_gateway_replay import Case, Stage, alike, ask, cases, differences, stage

# Cases that need more than bytes in and out, and cases of what the gateway does not do. The first have tests of their
# own in test_local_gateway_failures.py.
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "01-start-and-config": {
        "post-config": "Admin API",
        "after-": "the configuration changes in between: see test_local_gateway_reload.py",
        "first-request-service-row": "recorded before the file's limit was changed",
    },
    "02-access-calls": {
        "not-a-function": "indexing Kong's own tables is not emulated",
        "callable-table": "indexing Kong's own tables is not emulated",
        "node-client-time": "kong.nginx.get_var, get_statistics and memory stats are not emulated; the rest are clocks",
        "query-path": "one answer is the server's port",
        "serialize-value": "the recorded value came from kong.log.set_serialize_value in Lua, which is not emulated",
    },
    "03-exit": {},
    "04-log-phase": {"499-abort": "needs a client that goes away"},
    "05-hostile": {
        "h2": "no HTTP/2",
        "chunked-broken": "the gateway reads a body before the access phase",
    },
    "06-connections": {
        "socket-": "needs the socket gone",
        "fake-c1": "its bytes were no frame and are not in the recording",
        "fake-half": "its bytes were no frame and are not in the recording",
        "kill-mid-request": "needs the server killed",
        "fake-late": "needs an answer that comes late",
        "fake-silent-start-3": "needs three clients",
    },
    "07-guard": {
        "slow-python": "needs an answer that comes late",
        "server-down": "needs the socket gone",
        "back-uncached": "the instance was cached by the case before it",
        "abort": "needs a client that goes away",
    },
    "09-query-and-late-set": {"raw-query-keyauth-q": "a quirk of that Kong build: the first call of a worker is lost"},
}
# Cases whose bytes are not in the recording: no request (an operator's step, several at once, a body too large)
# or no answer. The eighth recording, two Kong workers, is of what one process cannot do.
NOT_KEPT: Mapping[str, frozenset[str]] = {
    "01-start-and-config": frozenset(["start", "kong-reload", "kong-stop"]),
    "02-access-calls": frozenset(["body-64k-noarg", "body-64k-65535", "body-64k-get-body", "raise-first", "raise-mid"]),
    "03-exit": frozenset(["exit-unread-body"]),
    "05-hostile": frozenset(["chunked-64k", "pipelined"]),
    "06-connections": frozenset(
        [
            "sequential-10",
            "concurrent-10",
            "concurrent-10-nosleep",
            "idle-3s",
            "restart",
            "restart-other-row-first",
            "down",
        ]
    ),
    "07-guard": frozenset(
        [
            "(restart before raise-mid)",
            "(restart before raise-after-set)",
            "(restart before utf8-header)",
            "(restart before lua-error)",
            "(restart before slow-python)",
            "(restart before slow-python-after-call)",
            "(restart before server-down)",
        ]
    ),
}
# What a case's answers differ in, and why; beside the times, ports, latencies and random ids of every case
# (`_TEXT` and `_NUMBERS` in local_gateway_replay.py), instance ids, and the order of headers that a Lua table gave.
EXCEPT: Mapping[str, tuple[str, ...]] = {
    "200-json": ("llm.usage", "[18]", "[19]"),  # set in Lua; the request's start twice
    "200-json-consumer-b": ("llm.usage",),
    "200-sse": ("llm.usage",),
    "log-consumer-none": ("llm.usage",),
    "utf8-serialize": (".llm",),
    "http10": (".llm",),
    "apikey-in-query": (".llm",),
    "exit-str": ("headers[",),  # Lua tables have no order: neither have headers given as one
    "response-headers": ("headers",),
    "response-headers-stream": ("headers",),
    "py-response-headers": ("headers[",),
    "service-request": ("upstream[0]",),
    "set-body": ("upstream body[0]",),  # a Lua table as JSON: see below
}


def _case_ids() -> list[tuple[str, str]]:
    return [
        (recording, name)
        for recording, left_out in LEFT_OUT.items()
        for name, case in cases(recording).items()
        if case.request and case.client.get("headers") and not name.startswith(tuple(left_out) or ("\0",))
    ]


@pytest.mark.parametrize(("recording", "name"), _case_ids())
def test_a_recorded_case_is_answered_as_kong_answered_it(recording: str, name: str) -> None:
    """Client status, headers in order and body, every frame to the plugin server, and the request upstream, head and
    body, agree."""
    found = _played(recording)[name]
    assert [line for line in found if not any(part in line for part in EXCEPT.get(name, ()))] == []


def test_a_table_set_as_the_body_goes_upstream_as_recorded() -> None:
    """But for the order of its members, of which a Lua table has none."""

    async def sent() -> bytes:
        async with stage("02-access-calls") as on:
            on.play(case)
            await ask(on.gateway.port, case.request)
            return on.upstream.requests[0][1]

    case = cases("02-access-calls")["set-body"]
    (recorded,) = case.upstream
    body = asyncio.run(sent())
    assert len(body) == recorded["body_len"] == len(recorded["body_head"])
    assert json.loads(body) == json.loads(recorded["body_head"])


def test_every_exception_is_one() -> None:
    """A case that agrees is not excused."""
    for recording, left_out in LEFT_OUT.items():
        names = cases(recording)
        for prefix in left_out:
            assert any(name.startswith(prefix) for name in names), f"no case {prefix} in {recording}"


def test_nothing_else_is_left_out() -> None:
    """Every recorded case is compared, left out by name for a reason, or has no bytes to compare."""
    compared = set(_case_ids())
    for recording, left_out in LEFT_OUT.items():
        rest = {name for name in cases(recording) if (recording, name) not in compared}
        unnamed = {name for name in rest if not name.startswith(tuple(left_out) or ("\0",))}
        assert unnamed == NOT_KEPT.get(recording, frozenset()), recording


@functools.cache
def _played(recording: str) -> dict[str, list[str]]:
    names = [name for of, name in _case_ids() if of == recording]
    return asyncio.run(_play(recording, names))


async def _play(recording: str, names: list[str]) -> dict[str, list[str]]:
    recorded = cases(recording)
    async with stage(recording, read_timeout_s=0.3) as on:
        return {name: await _compare(on, recorded[name]) for name in names}


async def _compare(on: Stage, case: Case) -> list[str]:
    on.play(case)
    answer = await ask(on.gateway.port, case.request)
    found = differences(answer.status, case.client["status"], "status")
    found += differences(_lines(answer.headers), _lines(case.client["headers"]), "headers")
    found += differences(alike(answer.body), alike(case.client.get("body") or ""), "body")
    try:
        await asyncio.wait_for(on.plugin.log_done.wait(), 2)
    except TimeoutError:
        found.append(f"frames that never came: {[call['method'] for call, _ in on.plugin.pending]}")
    sent = [{"method": call["method"], "argument": call["argument"]} for call, _ in case.calls]
    here, there = _latency_digits(answer.headers), _latency_digits(case.client["headers"])
    frames = [_frame(call, here) for call in on.plugin.received]
    found += differences(frames, [_frame(call, there) for call in sent], "frames")
    got = [sorted(_lines(_split(head))) for head, _ in on.upstream.requests]
    found += differences(got, [sorted(_lines(_split(event["head"]))) for event in case.upstream], "upstream")
    bodies = [(len(body), sha256(body).hexdigest()) for _, body in on.upstream.requests]
    found += differences(
        bodies, [(event["body_len"], event["body_sha256"]) for event in case.upstream], "upstream body"
    )
    return found


def _frame(call: dict[str, object], latency_digits: int) -> object:
    """``latency_digits``: of the answer's headers that tell of times, which the logged size counts."""
    frame = alike(call)
    if isinstance(frame["argument"], dict):
        frame["argument"].pop("InstanceId", None)
        match frame["argument"].get("Data"):
            case {"response": {"size": size} as response}:
                response["size"] = int(size) - latency_digits
    return frame


def _latency_digits(headers: Iterable[Sequence[str]]) -> int:
    return sum(len(value) for name, value in headers if name.lower().endswith("-latency"))


def _lines(headers: list[list[str]] | list[tuple[str, str]]) -> list[str]:
    """As they came, but for those that the tap sets from one Lua table, which has no order: they by name."""
    lines = [alike(f"{name}: {value}") for name, value in headers]
    unordered = [place for place, line in enumerate(lines) if line.startswith("X-RateLimit-")]
    for place, line in zip(unordered, sorted(lines[place] for place in unordered), strict=True):
        lines[place] = line
    return lines


def _split(head: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n"))]
