"""Tenants on one engine: none takes the others' places, sees their cached prefixes, or chooses its own way."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.e2e.conftest import MODEL, Running, chat
from tests.e2e.waiting import settled, wait_for

PLACES = 3  # of flooder and bystander, each
LONG = "Keep count of the tokens used by each consumer. " * 80  # several blocks of the engine's cache


def stall(running: Running, tenant: str, streams: ExitStack) -> None:
    """A stream that has begun and does not end by itself."""
    running.faults(hang_after_tokens=2, requests=1)
    answer = streams.enter_context(
        running.http.stream(
            "POST",
            f"{running.stack.url}/v1/chat/completions",
            json=chat(stream=True),
            headers={"apikey": running.key(tenant)},
        )
    )
    assert answer.status_code == 200
    lines = answer.iter_lines()
    next(line for line in lines if line.startswith("data: "))
    streams.callback(lines.close)  # unread any further, but open: one that nobody refers to ends its stream


def test_a_flooding_tenant_is_refused_early_and_nobody_else_is(running: Running) -> None:
    """All its places taken, every further request is a 429 that no engine sees; another tenant and the engine's health
    check are answered meanwhile; a place that is given back is one to take."""
    with ExitStack() as streams:
        for _ in range(PLACES):
            stall(running, "flooder", streams)
        before = len(running.seen_by_engine())
        for _ in range(20):
            refused = running.post("flooder", "/v1/chat/completions", json=chat())
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_limit"
            assert refused.headers["x-ratelimit-limit-requests"] == str(PLACES)
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert int(refused.headers["retry-after"]) >= 1
        assert len(running.seen_by_engine()) == before
        for _ in range(5):
            answer = running.post("bystander", "/v1/chat/completions", json=chat())
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == str(PLACES)
            assert running.http.get(f"{running.stack.engine_root}/health").status_code == 200
    wait_for(
        lambda: running.post("flooder", "/v1/chat/completions", json=chat()).status_code == 200, "places come back"
    )


def test_whoever_holds_the_most_of_an_engine_is_refused_and_nobody_else_is(running: Running) -> None:
    """Four of five places: the last one is another tenant's, who is answered again and again while the first one's
    further requests are a 429 that no engine sees. A stream that ends, or is left, makes room."""
    with ExitStack() as streams:
        for _ in range(4):
            stall(running, "most", streams)
        for _ in range(5):
            before = len(running.seen_by_engine())
            refused = running.post("most", "/v1/chat/completions", json=chat())
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "engine_full"
            assert int(refused.headers["retry-after-ms"]) >= 1
            assert len(running.seen_by_engine()) == before
            answered = running.post("least", "/v1/chat/completions", json=chat())
            assert answered.status_code == 200, answered.text
            assert running.http.get(f"{running.stack.engine_root}/health").status_code == 200
    wait_for(lambda: running.post("most", "/v1/chat/completions", json=chat()).status_code == 200, "places come back")


def test_the_sdk_waits_its_turn(running: Running) -> None:
    """openai's client raises RateLimitError without retries; with them it comes back and is answered, once there is a
    place."""
    with ExitStack() as streams:
        for _ in range(PLACES):
            stall(running, "flooder", streams)
        with pytest.raises(openai.RateLimitError) as refused:
            running.client("flooder").chat.completions.create(model=MODEL, messages=chat()["messages"], max_tokens=9)
        assert refused.value.code == "concurrency_limit"
    patient = running.client("flooder").with_options(max_retries=8)
    assert patient.chat.completions.create(model=MODEL, messages=chat()["messages"], max_tokens=64).choices


def cached(running: Running, tenant: str, text: str) -> int:
    answer = running.post(tenant, "/v1/chat/completions", json=chat(messages=[{"role": "user", "content": text}]))
    assert answer.status_code == 200, answer.text
    tokens: int = (answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    return tokens


def test_a_cached_prefix_is_its_tenants_or_its_groups(running: Running) -> None:
    """Cold for every other tenant, also after it was sent often; warm at once within a group."""
    text = f"{running.backend} {LONG}"
    assert cached(running, "grouped_a", text) == 0
    warm = cached(running, "grouped_a", text)
    assert warm > 0
    assert cached(running, "grouped_b", text) == warm
    assert cached(running, "roomy", text) == 0
    assert cached(running, "books", text) == 0
    assert cached(running, "roomy", text) == warm


def test_cached_tokens_are_charged_at_their_own_price(running: Running) -> None:
    """3 a prompt token, 0.3 a cached one, 9 a completion token: to the micro-unit, from what the engine reports."""
    text = f"priced {running.backend} {LONG}"
    charges = []
    for _ in range(2):
        before = settled(running, "priced") if running.ledger.balances("priced") else 0
        answer = running.post("priced", "/v1/chat/completions", json=chat(messages=[{"role": "user", "content": text}]))
        usage: dict[str, Any] = answer.json()["usage"]
        hits = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        micro = 30 * (usage["prompt_tokens"] - hits) + 3 * hits + 90 * usage["completion_tokens"]
        charges.append(settled(running, "priced") - before)
        assert charges[-1] == -(-micro // 10)
    assert charges[1] < charges[0]


def test_the_gateway_says_how_the_engine_serves_a_request(running: Running) -> None:
    """The row's priority, and a rank by the prompt's beginning; whatever the client asks for in body or header."""

    def seen(text: str) -> dict[str, Any]:
        forged = {"X-data-parallel-rank": "7", "X-Vllm-Priority": "-100", "X-Session-ID": "mine"}
        body = chat(messages=[{"role": "user", "content": text}], priority=-100, data_parallel_rank=7)
        answer = running.post("bystander", "/v1/chat/completions", json=body, headers=forged)
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-request-id"]
        (mine,) = (each for each in running.seen_by_engine() if request_id in str(each))
        return {**mine, "body": json.loads(mine["body"])}

    def rank(text: str) -> str:
        headers = {name.lower(): value for name, value in seen(text)["headers"]}
        assert "x-vllm-priority" not in headers
        assert "x-session-id" not in headers
        return str(headers["x-data-parallel-rank"])

    assert seen("a")["body"]["priority"] == -5
    assert "data_parallel_rank" not in seen("a")["body"]
    assert rank("a") == rank("a")
    assert {rank(str(number)) for number in range(12)} == {"0", "1"}
