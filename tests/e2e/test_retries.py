"""Clients that try again, through the whole stack: one answer, one charge, whatever they send."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.bench.retries import Books, Storm, books_of
from tests.e2e.conftest import MODEL, Running, chat
from tests.e2e.nodes import end_server
from tests.e2e.waiting import settled, wait_for

CHAT = "/v1/chat/completions"
MESSAGES: Any = chat()["messages"]
CLIENTS = 40
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat()),
    "chat stream": (CHAT, chat(stream=True)),
    "chat stream with usage": (CHAT, chat(stream=True, stream_options={"include_usage": True})),
    "responses": ("/v1/responses", {"model": MODEL, "input": "How many?", "max_output_tokens": 32}),
    "messages stream": ("/v1/messages", {"model": MODEL, "messages": MESSAGES, "max_tokens": 32, "stream": True}),
    "embeddings, 200 kB": ("/v1/embeddings", {"model": MODEL, "input": ["Once upon a time"] * 150}),
}


def new_key() -> str:
    return uuid.uuid4().hex


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def books(running: Running, tenant: str) -> Books:
    """Once nothing is held."""
    wait_for(lambda: not any(each.state.held for each in running.ledger.balances(tenant)), f"{tenant} settles")
    return books_of(running.ledger, tenant)


def ask(running: Running, tenant: str, key: str, **body: Any) -> httpx.Response:
    return running.post(tenant, CHAT, json=chat(**body), headers=keyed(key))


@contextmanager
def stalled_stream(running: Running, tenant: str, key: str, tokens: int = 10, **body: Any) -> Iterator[None]:
    """A client in the middle of its answer; it leaves at the end."""
    running.faults(hang_after_tokens=tokens, requests=1)
    headers = {"apikey": running.key(tenant), **keyed(key)}
    request = chat(stream=True, **body)
    with running.http.stream("POST", f"{running.stack.url}{CHAT}", json=request, headers=headers) as answer:
        assert answer.status_code == 200
        events = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(tokens):
            next(events)
        yield


@pytest.mark.parametrize("kind", BODIES)
def test_a_finished_request_is_answered_again_from_the_ledger(running: Running, kind: str) -> None:
    """The same bytes and content type, quoted or bare; no engine call, no charge, no event; ids of both attempts."""
    path, body = BODIES[kind]
    key = new_key()
    first = running.post("replayer", path, json=body, headers=keyed(f'"{key}"'))
    assert first.status_code == 200, first.text
    before, engine = books(running, "replayer"), running.engine()
    again = running.post("replayer", path, json=body, headers=keyed(key))
    assert (again.status_code, again.content) == (200, first.content)
    assert "200 kB" not in kind or 100_000 < len(first.content) < 262_144
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["idempotent-request-id"] == first.headers["x-request-id"] != again.headers["x-request-id"]
    assert "idempotent-replayed" not in first.headers
    assert running.engine() == engine
    assert books(running, "replayer") == before


def test_the_sdk_reads_a_replay_as_it_read_the_answer(running: Running) -> None:
    """Whole and streamed."""
    client = running.client("replayer")
    headers = keyed(new_key())
    whole = [
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=32, extra_headers=headers)
        for _ in range(2)
    ]
    assert whole[0] == whole[1]
    headers = keyed(new_key())
    streams = [
        list(
            client.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_tokens=32, stream=True, extra_headers=headers
            )
        )
        for _ in range(2)
    ]
    assert streams[0] == streams[1]
    assert len(streams[0]) > 10


def test_while_the_first_attempt_runs_the_next_has_to_wait(running: Running) -> None:
    """409 with times that SDKs obey; the engine is not asked; when the client has left, its next attempt runs."""
    key = new_key()
    running.post("retrier", CHAT, json=chat())
    before = books(running, "retrier")
    with stalled_stream(running, "retrier", key):
        engine = running.engine()
        refused = ask(running, "retrier", key, stream=True)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
        assert running.engine() == engine
    settled(running, "retrier")
    answer = ask(running, "retrier", key, stream=True)
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers
    after = books(running, "retrier")
    assert after.outcomes - before.outcomes == {"aborted": 1, "completed": 1, "reversed": 1}


def test_an_aborted_attempt_and_its_retry_are_paid_once(running: Running) -> None:
    """The engine worked twice; the partial charge is taken back from books and budget by an event."""
    running.post("retrier", CHAT, json=chat())
    key = new_key()
    before, committed, engine = books(running, "retrier"), settled(running, "retrier"), running.engine()
    with stalled_stream(running, "retrier", key):
        pass
    partial = settled(running, "retrier") - committed
    answer = ask(running, "retrier", key, stream=True)
    assert answer.status_code == 200
    after, tokens = books(running, "retrier"), running.engine()
    worked = tokens.prompt + tokens.completion - engine.prompt - engine.completion
    assert partial > 10
    assert (after.gross - before.gross, after.reversed - before.reversed) == (worked, partial)
    assert settled(running, "retrier") - committed == worked - partial


def test_a_key_is_for_one_request_of_one_tenant(running: Running) -> None:
    """Another body is a 422; another tenant's same key is nobody else's."""
    key = new_key()
    first = ask(running, "replayer", key)
    assert first.status_code == 200
    settled(running, "replayer")
    other = ask(running, "replayer", key, seed=1)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    stranger = ask(running, "retrier", key)
    assert stranger.status_code == 200
    assert "idempotent-replayed" not in stranger.headers
    assert stranger.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("value", ["", '"open', "a b", "x" * 256, 'a", "b'])
def test_what_is_no_key_is_refused(running: Running, value: str) -> None:
    """400, before anything is held or asked."""
    engine = running.engine()
    refused = ask(running, "replayer", value)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_idempotency_key")
    assert running.engine() == engine


def test_two_keys_are_refused(running: Running) -> None:
    """Nobody could say which was meant."""
    headers = [("apikey", running.key("replayer")), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused = running.http.post(f"{running.stack.url}{CHAT}", json=chat(), headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_idempotency_key")


def test_the_engine_never_sees_a_key(running: Running) -> None:
    """Two tenants may use the same one."""
    key = new_key()
    assert ask(running, "replayer", key).status_code == 200
    assert key not in str(running.seen_by_engine()[-1])


def test_an_sdk_that_times_out_is_charged_for_the_answer_it_got(running: Running) -> None:
    """OpenAI's own client and retries, no key of anybody: two attempts that the engine never answered, then one."""
    before = books(running, "retrier")
    running.faults(hang_after_tokens=0, requests=2)
    client = openai.OpenAI(
        base_url=f"{running.stack.url}/v1", api_key=running.key("retrier"), max_retries=3, timeout=1.0
    )
    body: Any = [{"role": "user", "content": f"Once upon a time {new_key()}"}]
    answer = client.chat.completions.create(model=MODEL, messages=body, max_tokens=16)
    after = books(running, "retrier")
    assert answer.usage is not None
    assert after.net - before.net == answer.usage.total_tokens
    assert after.outcomes - before.outcomes == {"aborted": 2, "completed": 1, "reversed": 2}
    assert len(after.standing.keys() - before.standing.keys()) == 1


def test_an_answer_that_got_lost_is_not_generated_again(running: Running) -> None:
    """The SDK's connection broke behind the last byte: its retry gets the answer, by what it asks alone."""
    body = chat(seed=int(new_key()[:6], 16))
    first = running.post("retrier", CHAT, json=body, headers={"x-stainless-retry-count": "0"})
    before, engine = books(running, "retrier"), running.engine()
    again = running.post("retrier", CHAT, json=body, headers={"x-stainless-retry-count": "1"})
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    assert (books(running, "retrier"), running.engine()) == (before, engine)


def test_two_equal_requests_are_two(running: Running) -> None:
    """An SDK that asks the same thing twice, without trying again, pays twice and gets two answers."""
    client = running.client("retrier")
    before = books(running, "retrier")
    answers = [client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=16) for _ in range(2)]
    after = books(running, "retrier")
    assert answers[0].id != answers[1].id
    assert after.net - before.net == sum(answer.usage.total_tokens for answer in answers if answer.usage)
    assert after.reversed == before.reversed


def test_an_answer_too_large_to_keep_is_not_generated_again(running: Running) -> None:
    """409 that no SDK retries, and no second charge."""
    key = new_key()
    assert ask(running, "forgetful", key).status_code == 200
    before, engine = books(running, "forgetful"), running.engine()
    refused = ask(running, "forgetful", key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_answer_not_kept")
    assert refused.headers["x-should-retry"] == "false"
    assert (books(running, "forgetful"), running.engine()) == (before, engine)


def test_no_more_attempts_than_agreed_are_charged_as_one(running: Running) -> None:
    """Nobody reads beginnings of answers for the price of one: the third attempt is a request of its own."""
    running.post("forgetful", CHAT, json=chat())
    key = new_key()
    before = books(running, "forgetful")
    for _ in range(3):
        with stalled_stream(running, "forgetful", key):
            pass
        settled(running, "forgetful")
    after = books(running, "forgetful")
    assert after.outcomes - before.outcomes == {"aborted": 3, "reversed": 1}
    assert len(after.standing.keys() - before.standing.keys()) == 2


def test_a_replay_outlives_the_plugin_server(running: Running) -> None:
    """The answer is the ledger's, not a process's."""
    key = new_key()
    first = ask(running, "replayer", key, stream=True)
    settled(running, "replayer")
    end_server(running)
    again = ask(running, "replayer", key, stream=True)
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")


@pytest.mark.parametrize(("leg", "tenant"), [("sdk", "storm_sdk"), ("streams", "storm_streams")])
def test_a_crowd_without_patience_is_charged_once_each(running: Running, leg: str, tenant: str) -> None:
    """A second's patience and three retries before an engine that stalls: one charge a logical request, answers, books,
    budget and the engine's counters agree to the token."""
    storm = Storm(running.stack.url, running.stack.engine_root, running.ledger)
    result = storm.run(leg, tenant, running.key(tenant), CLIENTS)
    assert result.attempts > CLIENTS
    assert result.books.reversed > 0
    assert result.failures() == [], result.line()
