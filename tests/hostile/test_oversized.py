"""What is larger than it ought to be, or costs more than its bytes: refused or metered, and nobody waits for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from kong_plugins.application.books import read_events
from tests.hostile.bodies import MODEL
from tests.hostile.heads import Wire
from tests.hostile.oracle import check
from tests.hostile.runs import control
from tests.hostile.sending import send
from tests.hostile.world import IMAGE_TOKENS, PAINTER, POOR, World, world

PATH = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
FOUR_MB = 4 * 2**20


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("oversized")) as running:
        yield running


def body(**more: Any) -> bytes:
    return json.dumps(ASK | more, separators=(",", ":")).encode()


def wire(attacked: World, case: str, data: bytes, *, target: str = PATH, head: str = "", framing: str = "") -> Wire:
    framing = framing or f"Content-Length: {len(data)}\r\n"
    lines = (
        f"POST {target} HTTP/1.1\r\nHost: gateway\r\nx-hostile-case: {case}\r\napikey: {attacked.key('eve')}\r\n"
        f"Content-Type: application/json\r\n{head}{framing}Connection: close\r\n\r\n"
    )
    return Wire(lines.encode() + data, PATH, "eve", case, data)


def chunks(data: bytes) -> bytes:
    pieces = (data[at : at + 65536] for at in range(0, len(data), 65536))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OVERSIZED: dict[str, tuple[bytes, dict[str, str]]] = {
    "messages": (body(messages=[{"role": "user", "content": ""}] * 100_000), {}),
    "one text": (body(messages=[{"role": "user", "content": "how many? " * (FOUR_MB // 10 - 20)}]), {}),
    "one text of spaces": (body(messages=[{"role": "user", "content": " " * (FOUR_MB - 200)}]), {}),
    "escapes": (body(messages=[{"role": "user", "content": "AAA"}]).replace(b"AAA", b"\\u0041" * 600_000), {}),
    "parts": (body(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]), {}),
    "tools": (body(tools=[TOOL] * 40_000), {}),
    "nested tool": (body(tools=[TOOL]).replace(b'"object"', b'{"a":' * 60_000 + b"1" + b"}" * 60_000), {}),
    "stops": (body(stop=["x"] * 500_000), {}),
    "members": (body(metadata={str(n): "" for n in range(200_000)}), {}),
    "fields": (body(**{f"f{n}": 1 for n in range(200_000)}), {}),
    "bias": (body(logit_bias={str(n): 1 for n in range(200_000)}), {}),
    "number": (body(max_tokens=4).replace(b":4", b":" + b"4" * 1_000_000), {}),
    "model": (body(model="m" * 1_000_000), {}),
    "body": (b" " * (10 * 2**20) + body(), {}),
    "body without a length": (chunks(b" " * (6 * 2**20)), {"framing": "Transfer-Encoding: chunked\r\n"}),
    "length": (b"", {"framing": f"Content-Length: {10**15}\r\n"}),
    "target": (body(), {"target": PATH + "?" + "a" * 60_000}),
    "path": (body(), {"target": "/v1" + "/x" * 4_000}),
    "header": (body(), {"head": f"x-odd: {'a' * 200_000}\r\n"}),
    "headers": (body(), {"head": "".join(f"x-h{n}: v\r\n" for n in range(20_000))}),
    "key": (body(), {"head": f"x-api-key: {'a' * 30_000}\r\n"}),
}


@pytest.mark.parametrize("case", OVERSIZED)
def test_whatever_is_oversized_is_refused_or_metered(attacked: World, case: str) -> None:
    """Never a 5xx, never unmetered; a decent request right behind it is answered."""
    data, how = OVERSIZED[case]
    sent = wire(attacked, f"oversized-{case.replace(' ', '-')}", data, **how)
    came = send(attacked.port, sent, decent=case != "length")
    assert not came.statuses or came.statuses[-1] in {200, 400, 404, 413, 414, 422, 431}, came.data[:300]
    behind = send(attacked.port, control(hash(case), attacked.key), decent=True)
    assert behind.statuses == [200]
    tenants = {sent.case: "eve", behind.wire.case: "victim"}
    assert check(attacked, [came, behind], tenants).problems == []


def ask(attacked: World, count: int) -> httpx.Response:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [image] * count}]
    headers = {"apikey": attacked.key(PAINTER)}
    return httpx.post(attacked.stack.url + PATH, headers=headers, json=ASK | {"messages": messages}, timeout=30)


def test_an_image_is_held_at_its_tokens_and_not_at_its_bytes(attacked: World) -> None:
    """Sixty bytes each: as many as the budget has room for by their tokens are admitted, one more is not; and the
    engine, which here knows no images, has nothing of what was refused."""
    most = POOR // IMAGE_TOKENS
    refused = ask(attacked, most)  # with a prompt around them
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "request_exceeds_limit"
    assert refused.json()["error"]["asked"] > most * IMAGE_TOKENS
    admitted = ask(attacked, most - 1)
    assert int(admitted.headers["x-ratelimit-remaining-tokens"]) <= POOR - (most - 1) * IMAGE_TOKENS
    events = [json.loads(entry.event)["data"] for entry in read_events(attacked.ledger)]
    assert sum(event["tenant"] == PAINTER for event in events) == 1
