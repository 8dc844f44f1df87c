"""What tenants do, on a real vLLM: in the end the books equal the engine's own counters to the token.

The tests of this file run in order and share one engine; the last one kills it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import openai
import pytest

from kong_plugins.adapters.books import open_books
from tests.engine.conftest import BLOCK, RealEngine

MODEL = "deepseek-r1"
SENTENCE = "Keep count of the tokens used by each consumer. "


def messages(text: str = "How many?") -> Any:
    return [{"role": "user", "content": text}]


def test_a_whole_answer_is_billed_as_the_engine_counted_it(real: RealEngine) -> None:
    """And the reasoning parser's part of it is told apart."""
    answer = real.client("tenant_a").chat.completions.create(model=MODEL, messages=messages(), max_tokens=64)
    assert answer.usage is not None
    books, engine = real.books(), real.engine()
    assert (books.prompt, books.completion) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert (books.prompt, books.completion) == (engine.prompt, engine.completion)


def test_a_stream_shows_no_usage_that_was_not_asked_for(real: RealEngine) -> None:
    """vLLM puts usage into every chunk for the meter; the client sees it only where it asked."""
    client = real.client("tenant_a").chat.completions
    plain = list(client.create(model=MODEL, messages=messages(), max_tokens=64, stream=True))
    asked = list(
        client.create(
            model=MODEL, messages=messages(), max_tokens=64, stream=True, stream_options={"include_usage": True}
        )
    )
    assert not any(chunk.usage for chunk in plain)
    assert asked[-1].usage is not None
    text = "".join(chunk.choices[0].delta.content or "" for chunk in plain if chunk.choices)
    assert "🎉" in text


def test_every_endpoint_is_metered(real: RealEngine) -> None:
    """Chat, completions, responses and messages, whole and streamed: the engine's counters say the same each time."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("completions", {"prompt": "Once upon", "max_tokens": 20}),
        ("responses", {"input": "How many?", "max_output_tokens": 64}),
        ("messages", {"messages": messages(), "max_tokens": 64}),
        ("chat/completions", {"messages": messages(), "max_tokens": 64}),
    ]
    headers = {"apikey": real.key("tenant_a")}
    for path, body in requests:
        for stream in (False, True):
            url = f"{real.stack.url}/v1/{path}"
            answer = real.http.post(url, headers=headers, json={"model": MODEL, "stream": stream, **body})
            assert answer.status_code == 200, (path, stream, answer.text)
            books, engine = real.books(), real.engine()
            assert (books.prompt, books.completion) == (engine.prompt, engine.completion), (path, stream)


def test_an_aborted_stream_is_billed_to_the_token(real: RealEngine) -> None:
    """The last usage before the client left counts; what the engine still had in flight then is in nobody's bill."""
    before, engine_before = real.books(), real.engine()
    left_after = 8
    body = {"model": MODEL, "prompt": SENTENCE, "max_tokens": 2000, "stream": True}
    headers = {"apikey": real.key("tenant_a")}
    with real.http.stream("POST", f"{real.stack.url}/v1/completions", json=body, headers=headers) as answer:
        chunks = 0
        for line in answer.iter_lines():
            chunks += line.startswith("data: ")
            if chunks == left_after:
                break
    real.wait_for(lambda: real.books().outcomes["aborted"] == before.outcomes["aborted"] + 1)
    books, engine = real.books(), real.engine()
    billed, generated = books.completion - before.completion, engine.completion - engine_before.completion
    assert books.prompt - before.prompt == engine.prompt - engine_before.prompt
    # An engine step may end between the last byte to the client and the engine's own notice of the abort.
    assert left_after <= billed <= generated <= billed + 3


def test_two_choices_share_one_prompt(real: RealEngine) -> None:
    """n=2: the bill has the prompt once, as the engine's usage has; its counter takes it twice (docs/limits.md)."""
    before, engine_before = real.books(), real.engine()
    answer = real.client("tenant_a").chat.completions.create(model=MODEL, messages=messages(), max_tokens=64, n=2)
    assert answer.usage is not None
    assert len(answer.choices) == 2
    books, engine = real.books(), real.engine()
    assert books.prompt - before.prompt == answer.usage.prompt_tokens
    assert engine.prompt - engine_before.prompt == 2 * answer.usage.prompt_tokens
    assert books.completion - before.completion == engine.completion - engine_before.completion


@pytest.mark.parametrize("path", ["chat/completions", "messages"])
def test_a_tenant_finds_its_own_prefix_in_the_cache_and_nobody_elses(real: RealEngine, path: str) -> None:
    """The salt keeps tenants apart: the same prompt is cold for the second tenant, warm for the first one again."""
    prompt = messages(f"A prompt of this test's own, for {path}. {SENTENCE * 20}")

    def cached(tenant: str) -> int:
        body = {"model": MODEL, "messages": prompt, "max_tokens": 4}
        answer = real.http.post(f"{real.stack.url}/v1/{path}", headers={"apikey": real.key(tenant)}, json=body)
        usage = answer.json()["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return int(usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0)

    assert cached("tenant_a") == 0
    warm = cached("tenant_a")
    assert warm >= BLOCK
    assert warm % BLOCK == 0
    assert cached("tenant_b") == 0
    assert cached("tenant_b") == warm


def test_a_prompt_that_is_too_long_costs_nothing(real: RealEngine) -> None:
    """The engine refuses it; the hold comes back, nothing is posted."""
    before, engine_before = real.books(), real.engine()
    with pytest.raises(openai.BadRequestError):
        real.client("tenant_a").chat.completions.create(model=MODEL, messages=messages(SENTENCE * 900), max_tokens=64)
    books, engine = real.books(), real.engine()
    assert (books.total, engine.prompt) == (before.total, engine_before.prompt)
    assert books.outcomes["failed"] == before.outcomes["failed"] + 1


def test_a_shared_prefix_cache_shows_in_the_bill(real: RealEngine) -> None:
    """Cached prompt tokens of the bill are those that the engine's cache counted."""
    books, engine = real.books(), real.engine()
    assert books.cached > 0
    # An aborted stream's last usage does not tell its cached tokens yet, so the bill never has more than the engine.
    assert books.cached <= engine.cached


def test_reconcile_finds_nothing_that_it_cannot_explain(real: RealEngine) -> None:
    """Books in DuckDB against the engine's counters, after all that the tests above did to it; and traffic past the
    gateway is found."""
    books = real.books()
    assert real.stack.books is not None
    real.wait_for(lambda: _booked(real) >= books.requests)
    explained = _reconcile(real)
    assert explained.returncode == 0, explained.stdout + explained.stderr
    direct = {"model": MODEL, "prompt": SENTENCE * 30, "max_tokens": 200}
    real.http.post(f"{real.stack.upstream_url}/completions", json=direct).raise_for_status()
    bypassed = _reconcile(real)
    assert bypassed.returncode == 1, bypassed.stdout + bypassed.stderr
    assert "unexplained" in bypassed.stdout


def _booked(real: RealEngine) -> int:
    assert real.stack.books is not None
    with open_books(real.stack.books, read_only=True) as books:
        (count,) = books.execute("SELECT count(*) FROM events WHERE kind = 'request'").fetchone() or (0,)
    return int(count)


def _reconcile(real: RealEngine) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kong_plugins.cli", "reconcile", "--books", str(real.stack.books)]
    argv += ["--ledger", real.stack.ledger_url, "--engine", real.stack.engine_root]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_a_killed_engine_leaves_no_hold_and_bills_what_passed(real: RealEngine) -> None:
    """Killed within a stream: the client's stream ends, what came is charged, later requests fail for free."""
    before = real.books()
    body = {"model": MODEL, "prompt": SENTENCE, "max_tokens": 4000, "stream": True}
    headers = {"apikey": real.key("tenant_a")}
    passed = 0
    with real.http.stream("POST", f"{real.stack.url}/v1/completions", json=body, headers=headers) as answer:
        try:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                passed += bool(json.loads(line.removeprefix("data: "))["choices"])
                if passed == 5:
                    real.process().process.kill()
        except Exception as error:  # noqa: BLE001  however the client's library names a stream that was cut
            print(f"the cut stream: {error!r}")
    books = real.books()
    assert books.requests == before.requests + 1
    assert books.completion - before.completion >= passed
    with pytest.raises(openai.APIStatusError):
        real.client("tenant_a").chat.completions.create(model=MODEL, messages=messages(), max_tokens=64)
    assert real.books().completion == books.completion
