"""A tenant's requests through the whole stack: authenticated, held, streamed, settled."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.e2e.conftest import MODEL, Running, chat
from tests.e2e.waiting import settled

MESSAGES: Any = [{"role": "user", "content": "How many requests remain for me today?"}]


def test_no_key_is_refused_and_reaches_no_engine(running: Running) -> None:
    """Without a key: Kong's 401, and the engine sees nothing."""
    before = len(running.seen_by_engine())
    answer = running.http.post(f"{running.stack.url}/v1/chat/completions", json=chat())
    assert answer.status_code == 401
    assert len(running.seen_by_engine()) == before


def test_both_header_forms_and_both_routes_work(running: Running) -> None:
    """`apikey`, `Authorization: Bearer` and `x-api-key`, on /v1 and on /chat, reach the engine's /v1."""
    key = running.key("roomy")
    for headers in ({"apikey": key}, {"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        for path in ("/v1/chat/completions", "/chat/completions"):
            answer = running.http.post(f"{running.stack.url}{path}", headers=headers, json=chat())
            assert answer.status_code == 200, (headers.keys(), path, answer.text)
            assert answer.json()["usage"]["completion_tokens"] > 0


def test_an_answer_says_what_is_left(running: Running) -> None:
    """Rate limit headers of both kinds come with a success."""
    answer = running.post("roomy", "/v1/chat/completions", json=chat())
    assert int(answer.headers["x-ratelimit-limit-tokens"]) == 50_000_000
    assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 50_000_000
    assert '"daily"' in answer.headers["ratelimit"]
    assert '"daily"' in answer.headers["ratelimit-policy"]


def test_a_plain_answer_is_charged_to_the_token(running: Running) -> None:
    """The ledger's committed tokens grow by exactly the usage the client was shown."""
    running.client("books").chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=64)
    before = settled(running, "books")
    answer = running.client("books").chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=64)
    assert answer.usage is not None
    assert settled(running, "books") - before == answer.usage.total_tokens


@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_stream_is_charged_and_shows_usage_only_when_asked(running: Running, wants_usage: bool) -> None:
    """The engine is always asked for usage; a client that did not ask sees none of it."""
    asked: dict[str, Any] = {"stream_options": {"include_usage": True}} if wants_usage else {}
    running.post("books", "/v1/chat/completions", json=chat())
    before_ledger, before_engine = settled(running, "books"), running.engine()
    answer = running.post("books", "/v1/chat/completions", json=chat(stream=True, **asked))
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    shown = [chunk for chunk in chunks if chunk.get("usage")]
    assert bool(shown) is wants_usage
    assert all(chunk["choices"] for chunk in chunks) is not wants_usage
    charged = settled(running, "books") - before_ledger
    after = running.engine()
    assert charged == (after.prompt - before_engine.prompt) + (after.completion - before_engine.completion)
    if wants_usage:
        assert charged == shown[-1]["usage"]["total_tokens"]


def test_a_stream_that_asked_for_usage_is_untouched(running: Running) -> None:
    """With usage asked for, the client gets the engine's events byte for byte."""
    body = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}, seed=1)
    through = running.post("roomy", "/v1/chat/completions", json=body).text
    direct = running.http.post(f"{running.stack.upstream_url}/chat/completions", json=body).text

    def masked(text: str) -> list[Any]:
        events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: {")]
        first = json.loads(events[0])
        return [event.replace(first["id"], "ID").replace(str(first["created"]), "TIME") for event in events]

    assert masked(through) == masked(direct)
    assert through.endswith("data: [DONE]\n\n")


def test_an_aborted_stream_is_charged_what_the_engine_generated(running: Running) -> None:
    """The client leaves mid-stream: the charge equals the engine's own counters, not the hold.

    The engine stalls after 25 tokens, so that none is under way when the client leaves: what an engine generates
    between a client's leaving and its own noticing, nobody can see.
    """
    running.post("aborter", "/v1/chat/completions", json=chat())
    before_ledger, before_engine = settled(running, "aborter"), running.engine()
    running.faults(hang_after_tokens=25, requests=1)
    body = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    url, headers = f"{running.stack.url}/v1/chat/completions", {"apikey": running.key("aborter")}
    with running.http.stream("POST", url, json=body, headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["usage"]["completion_tokens"] == 25:
                break
    charged, after = settled(running, "aborter") - before_ledger, running.engine()
    assert after.completion - before_engine.completion == 25
    assert charged == after.prompt - before_engine.prompt + 25


def spend(running: Running, tenant: str) -> None:
    """Ask until refused, each time with nothing held by the request before."""
    client = running.client(tenant)
    for _ in range(50):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=64)
        settled(running, tenant)


def test_the_sdk_raises_rate_limit_error_when_the_budget_is_spent(running: Running) -> None:
    """A spent daily budget: 429, `insufficient_quota`, not to be retried; the engine is not asked."""
    with pytest.raises(openai.RateLimitError) as refused:
        spend(running, "spender")
    error = refused.value
    assert error.code == "insufficient_quota"
    assert error.response.headers["x-should-retry"] == "false"
    assert "daily" in str(error)
    assert settled(running, "spender") <= 1_000


def test_a_short_window_says_when_to_come_back(running: Running) -> None:
    """A rolling minute: `rate_limit_exceeded` with Retry-After within the window."""
    with pytest.raises(openai.RateLimitError) as refused:
        spend(running, "bursty")
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 61


def test_a_shadow_budget_refuses_nobody(running: Running) -> None:
    """Shadow: decided and counted, let through."""
    for _ in range(3):
        assert running.post("shadowed", "/v1/chat/completions", json=chat()).status_code == 200
    assert settled(running, "shadowed") > 1


@pytest.mark.parametrize(
    ("path", "body", "stream"),
    [
        ("/v1/embeddings", {"model": MODEL, "input": "Once upon a time"}, False),
        *[
            (path, body, stream)
            for stream in (False, True)
            for path, body in (
                ("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 8}),
                ("/v1/responses", {"model": MODEL, "input": "How many?", "max_output_tokens": 64}),
                ("/v1/messages", {"model": MODEL, "messages": MESSAGES, "max_tokens": 64}),
            )
        ],
    ],
)
def test_every_metered_endpoint_is_charged_as_the_engine_counts(
    running: Running, path: str, body: dict[str, Any], stream: bool
) -> None:
    """completions, embeddings, responses and messages: each in its own shape, to the token."""
    running.post("books", "/v1/chat/completions", json=chat())
    before_ledger, before_engine = settled(running, "books"), running.engine()
    answer = running.post("books", path, json={**body, "stream": True} if stream else body)
    assert answer.status_code == 200, answer.text
    charged, after = settled(running, "books") - before_ledger, running.engine()
    assert charged == (after.prompt - before_engine.prompt) + (after.completion - before_engine.completion)
    assert charged > 0


def test_what_reaches_the_engine_holds_no_key_and_no_forged_field(running: Running) -> None:
    """No credential, no forged identity, no client's own salt, id or priority reaches the engine."""
    key = running.key("roomy")
    forged = {
        "Authorization": "Bearer sk-unused",
        "X-Authenticated-Userid": "root",
        "X-Consumer-Username": "somebody-else",
    }
    body = chat(cache_salt="mine", request_id="chosen", priority=-100)
    answer = running.post("roomy", "/v1/chat/completions", json=body, headers=forged)
    assert answer.status_code == 200, answer.text
    last = running.seen_by_engine()[-1]
    text = json.dumps(last)
    assert key not in text
    assert "sk-unused" not in text
    assert "somebody-else" not in text
    headers = {name.lower(): value for name, value in dict(last["headers"]).items()}
    assert "x-authenticated-userid" not in headers
    sent = last["body"] if isinstance(last["body"], dict) else json.loads(last["body"])
    assert sent.get("cache_salt") not in (None, "mine")
    assert sent.get("request_id") != "chosen"
    assert "priority" not in sent


def test_a_route_without_usage_tap_generates_nothing(running: Running) -> None:
    """Nobody would settle there: the engine is asked for a path it does not have, and generates nothing."""
    before = running.engine()
    answer = running.post("roomy", "/untapped/chat/completions", json=chat())
    assert answer.status_code == 404
    assert running.engine() == before
    assert running.seen_by_engine()[-1]["path"] == "/usage-tap-is-not-enabled-on-this-route"


def test_an_unmetered_path_is_denied(running: Running) -> None:
    """Any other path on a metered route: refused by default, and the engine is not asked."""
    before = len(running.seen_by_engine())
    for path in ("/v1/tokenize", "/v1/chat/completions/render", "/v1/files", "/v1/messages/count_tokens"):
        assert running.post("roomy", path, json=chat()).status_code in (403, 404), path
    assert len(running.seen_by_engine()) == before
