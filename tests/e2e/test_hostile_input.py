"""What a tenant may send: every body is refused clearly or metered correctly; never a 500, never unmetered."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import MODEL, Running, chat
from tests.e2e.waiting import settled

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
DUPLICATE_MODEL = b'{"model":"deepseek-r1","model":"free","messages":[{"role":"user","content":"x"}]}'

REFUSED: dict[str, tuple[bytes, dict[str, str], set[int]]] = {
    "malformed": (b'{"model": ', JSON, {400}),
    "not an object": (b"[1, 2]", JSON, {400}),
    "empty": (b"", JSON, {400}),
    "5 MB": (
        b'{"model":"deepseek-r1","messages":[{"role":"user","content":"' + b"x" * 5_000_000 + b'"}]}',
        JSON,
        {413},
    ),
    "gzip": (gzip.compress(json.dumps(chat()).encode()), {**JSON, "Content-Encoding": "gzip"}, {415}),
    "not json": (b"model=deepseek-r1", {"Content-Type": "application/x-www-form-urlencoded"}, {415}),
    "duplicate keys": (DUPLICATE_MODEL, JSON, {400}),
    "n 64": (json.dumps(chat(n=64)).encode(), JSON, {400}),
    "n negative": (json.dumps(chat(n=-1)).encode(), JSON, {400}),
    "max_tokens negative": (json.dumps(chat(max_tokens=-5)).encode(), JSON, {400}),
    "max_tokens float": (json.dumps(chat(max_tokens=5.5)).encode(), JSON, {400}),
    "max_tokens string": (json.dumps(chat(max_tokens="5")).encode(), JSON, {400}),
    "max_tokens huge": (b'{"model":"deepseek-r1","messages":[],"max_tokens":99999999999999999999999}', JSON, {400}),
    "missing model": (b'{"messages":[{"role":"user","content":"x"}]}', JSON, {400}),
    "unknown content part": (
        json.dumps(chat(messages=[{"role": "user", "content": [{"type": "hologram", "hologram": {}}]}])).encode(),
        JSON,
        {400},
    ),
    "invalid UTF-8 in the body": (
        b'{"model":"deepseek-r1","messages":[{"role":"user","content":"\xff"}]}',
        JSON,
        {400},
    ),
    "NaN": (b'{"model":"deepseek-r1","messages":[],"temperature":NaN}', JSON, {400}),
    "deep nesting": (b'{"model":"deepseek-r1","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", JSON, {400}),
    "trailing garbage": (json.dumps(chat()).encode() + b"x", JSON, {400}),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(chat()).encode(), JSON, {400}),
    "UTF-16": (json.dumps(chat()).encode("utf-16"), JSON, {400}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_bodies_are_refused_clearly(running: Running, case: str) -> None:
    """A clear 400, 413 or 415 in OpenAI's error shape, nothing asked of the engine, nothing charged."""
    body, headers, statuses = REFUSED[case]
    before = running.engine()
    answer = running.post("roomy", PATH, content=body, headers=headers)
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    assert running.engine() == before


def test_a_body_beyond_kongs_own_bound_is_refused(running: Running) -> None:
    """By nginx already, in Kong's words, where client_max_body_size is as in kong/kong.conf; else like any other."""
    before = running.engine()
    answer = running.post("roomy", PATH, content=b'{"x":"' + b"x" * 10_000_000 + b'"}', headers=JSON)
    assert answer.status_code == 413
    assert running.engine() == before


METERED: dict[str, dict[str, Any]] = {
    "both max fields": chat(max_completion_tokens=32),
    "_method in the body": chat(_method="plugin.CloseInstance"),
    "nested duplicates": chat(metadata={"a": 1}),
    "no max tokens": {k: v for k, v in chat().items() if k != "max_tokens"},
}


@pytest.mark.parametrize("case", METERED)
def test_odd_but_valid_bodies_are_metered(running: Running, case: str) -> None:
    """Let through, and charged as the engine counts."""
    running.post("books", PATH, json=chat())
    before_ledger, before = settled(running, "books"), running.engine()
    answer = running.post("books", PATH, json=METERED[case])
    assert answer.status_code == 200, answer.text
    charged, after = settled(running, "books") - before_ledger, running.engine()
    assert charged == (after.prompt - before.prompt) + (after.completion - before.completion) > 0


def test_two_choices_are_charged_with_their_prompt_once(running: Running) -> None:
    """n = 2: the answer's own usage, completions summed. (The engine's metrics page counts the prompt for each.)"""
    running.post("books", PATH, json=chat())
    before = settled(running, "books")
    answer = running.post("books", PATH, json=chat(n=2))
    assert len(answer.json()["choices"]) == 2
    assert settled(running, "books") - before == answer.json()["usage"]["total_tokens"]


def test_token_id_prompts_are_metered(running: Running) -> None:
    """A prompt of token ids is held and charged like text."""
    running.post("books", PATH, json=chat())
    before_ledger, before = settled(running, "books"), running.engine()
    answer = running.post("books", "/v1/completions", json={"model": MODEL, "prompt": [100, 200, 300], "max_tokens": 8})
    assert answer.status_code == 200, answer.text
    charged, after = settled(running, "books") - before_ledger, running.engine()
    assert charged == (after.prompt - before.prompt) + (after.completion - before.completion) > 0


def raw_request(running: Running, extra: bytes, target: bytes = b"/v1/chat/completions") -> bytes:
    """One request written byte by byte, its status line and body back."""
    parts = urlsplit(running.stack.url)
    body = json.dumps(chat()).encode()
    head = b"POST " + target + b" HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    head += b"apikey: " + running.key("books").encode() + b"\r\n" + extra
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((str(parts.hostname), int(parts.port or 80)), timeout=20) as connection:
        connection.sendall(head + body)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize(
    ("extra", "target"),
    [
        (b"x-odd: \xff\x80\r\n", b"/v1/chat/completions"),
        (b"user-agent: \xe9\r\n", b"/v1/chat/completions"),
        (b"_method: plugin.CloseInstance\r\n", b"/v1/chat/completions"),
        (b"_method: x\r\n_method: y\r\n", b"/v1/chat/completions"),
        (b"", b"/v1/chat/completions?_method=plugin.StepError"),
        (b"", b"/v1/chat/completions?_method"),
        (b"".join(b"x-h%d: v\r\n" % number for number in range(80)), b"/v1/chat/completions"),
    ],
)
def test_hostile_headers_and_queries_are_metered(running: Running, extra: bytes, target: bytes) -> None:
    """Invalid UTF-8 and `_method` where stock kong-pdk lets a request through unmetered: answered and charged."""
    running.post("books", PATH, json=chat())
    before_ledger, before = settled(running, "books"), running.engine()
    answer = raw_request(running, extra, target)
    assert b" 200 " in answer.split(b"\r\n", 1)[0], answer[:300]
    charged, after = settled(running, "books") - before_ledger, running.engine()
    assert charged == (after.prompt - before.prompt) + (after.completion - before.completion) > 0


@pytest.mark.parametrize("connection", [b"content-length", b"close, Content-Length", b"x-request-id"])
def test_no_header_can_be_dropped_to_smuggle_a_request(running: Running, connection: bytes) -> None:
    """Kong itself drops what `Connection` names, the body's length too: refused, and the next tenant is unharmed."""
    before = running.engine()
    answer = raw_request(running, b"Connection: " + connection + b"\r\n")
    assert b" 400 " in answer.split(b"\r\n", 1)[0], answer[:300]
    assert running.engine() == before
    for _ in range(3):
        assert running.post("roomy", PATH, json=chat()).status_code == 200


def test_many_at_once_never_overshoot(running: Running) -> None:
    """60 clients at once on one budget: what is committed never passes the limit, and some are refused."""
    assert running.post("roomy", PATH, json=chat()).status_code == 200  # not a node's first requests
    statuses: list[int] = []

    def work() -> None:
        for _ in range(5):
            statuses.append(running.post("barrier", PATH, json=chat()).status_code)

    threads = [threading.Thread(target=work) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert settled(running, "barrier") <= 20_000
