"""Refusals: what a client is told, in its own SDK's terms."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import openai
import pytest
from scripted_kong import Bench, budget, chat

from kong_plugins.token_quota.responses import duration, header_value


def raised_by_sdk(kong: Any) -> openai.APIStatusError:
    """What the openai client makes of the answer, and how often it asked."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(kong.status, headers=kong.headers, content=kong.exit[1].encode(), request=request)

    client = openai.OpenAI(
        api_key="k",
        base_url="http://127.0.0.1/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    return raised.value


def test_a_spent_day_is_insufficient_quota() -> None:
    """The SDK raises RateLimitError with the code, is told not to retry, and reads budget, asked, left and reset."""
    bench = Bench(budgets=[budget(limit=400)])
    first = bench.access()
    bench.log(first, usage={"prompt": 20, "completion": 330}, evidence="exact")
    kong = bench.access()
    assert kong.calls == ["ctx.shared.get usage_gate", "response.exit"]
    assert (kong.status, kong.headers["x-should-retry"]) == (429, "false")
    assert "Retry-After" not in kong.headers
    error = raised_by_sdk(kong)
    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert kong.error["remaining"] == 50
    assert kong.error["reset"] == "2025-11-23T00:00:00Z"
    for part in ("daily", "400", str(kong.error["asked"]), "50 are left", "2025-11-23T00:00:00Z"):
        assert part in kong.error["message"]
    assert kong.headers["x-ratelimit-remaining-tokens"] == "50"
    assert kong.headers["RateLimit"] == '"daily";r=50;t=43200'


def test_a_short_wait_is_rate_limit_exceeded() -> None:
    """Retry-After in seconds and milliseconds, which the SDK's own parser reads; no word against trying again."""
    bench = Bench(budgets=[budget("minute", 400, window="minute")])
    bench.log(bench.access(), usage={"prompt": 20, "completion": 350}, evidence="exact")
    bench.clock.us += 15_500_000
    kong = bench.access()
    assert (kong.error["code"], kong.error["type"]) == ("rate_limit_exceeded", "tokens")
    assert (kong.headers["Retry-After"], kong.headers["retry-after-ms"]) == ("45", "44500")
    assert "x-should-retry" not in kong.headers
    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1")
    response = httpx2.Response(429, headers=kong.headers)
    assert client._parse_retry_after_header(response.headers) == 44.5
    assert client._should_retry(response) is True


def test_a_budget_held_by_requests_under_way_is_worth_a_short_wait() -> None:
    """The window ends in hours, but what is missing is only held: the client is told to come back in seconds."""
    bench = Bench(budgets=[budget(limit=400)])
    assert bench.access().status is None
    kong = bench.access()
    assert kong.error["code"] == "rate_limit_exceeded"
    assert kong.headers["Retry-After"] == "2"


def test_what_never_fits_says_so() -> None:
    """Larger than the whole limit: no wait helps."""
    kong = Bench(budgets=[budget(limit=50)]).access()
    assert kong.error["code"] == "request_exceeds_limit"
    assert "never fits" in kong.error["message"]
    assert kong.headers["x-should-retry"] == "false"


def test_the_worst_budget_is_named() -> None:
    """Of two that are short, the one that is short for longer."""
    bench = Bench(budgets=[budget("minute", 400, window="minute"), budget("daily", 400)])
    bench.log(bench.access(), usage={"prompt": 50, "completion": 340}, evidence="exact")
    assert bench.access().error["budget"] == "daily"


def test_anthropic_clients_read_their_own_shape() -> None:
    """On /messages: type error, rate_limit_error."""
    bench = Bench(budgets=[budget(limit=10)])
    body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "x"}]}
    kong = bench.access(body, path="/v1/messages")
    document = json.loads(kong.exit[1]) if kong.exit else {}
    assert kong.status == 429
    assert (document["type"], document["error"]["type"]) == ("error", "rate_limit_error")
    assert document["error"]["budget"] == "daily"
    bad = bench.access(b"{", path="/v1/messages")
    assert json.loads(bad.exit[1])["error"]["type"] == "invalid_request_error"  # type: ignore[index]


@pytest.mark.parametrize(
    ("accept", "is_problem"),
    [
        ("application/problem+json", True),
        ("application/json, application/problem+json;q=0.9", True),
        ("application/problem+json;q=0", False),
        ("*/*", False),
        (None, False),
    ],
)
def test_problem_json_is_for_those_who_ask(accept: str | None, is_problem: bool) -> None:
    """RFC 9457, with the draft's problem type and the budgets' figures."""
    kong = Bench(budgets=[budget(limit=10)]).access(accept=accept)
    document = json.loads(kong.exit[1]) if kong.exit else {}
    assert (kong.headers["Content-Type"] == "application/problem+json") is is_problem
    assert ("detail" in document) is is_problem
    if is_problem:
        assert document["status"] == 429
        assert document["violated-policies"] == ["daily"]


def test_a_prompt_is_counted_before_it_is_refused() -> None:
    """A Chinese prompt has three bytes a character and far fewer tokens: the bound does not fit, the count does."""
    body = chat(messages=[{"role": "user", "content": "你好世界" * 50}], max_tokens=16)
    limits: dict[str, Any] = {"budgets": [budget(limit=400)], "chat_template": "deepseek_r1"}
    kong = Bench(**limits, tokenizers={"deepseek-r1": "deepseek-r1"}).access(body)
    assert kong.status is None
    assert sum(kong.decision["log"]["bound"]) <= 400
    uncountable = chat(model="unheard-of", messages=body["messages"], max_tokens=16)
    assert Bench(**limits).access(uncountable).status == 429


def test_clamping_gives_what_is_left() -> None:
    """The largest limit that fits is written into the body and held; below the floor it is a refusal."""
    # Named, so built before the first request: one that is counted and one that is not are clamped differently.
    clamped = {"budgets": [budget(limit=1_000)], "on_short": "clamp", "tokenizers": {"deepseek-r1": "deepseek-r1"}}
    bench = Bench(**clamped, clamp_min_tokens=100)
    kong = bench.access(chat(max_tokens=5_000))
    assert kong.status is None
    sent = json.loads(kong.decision["body"])["max_tokens"]
    assert 100 <= sent < 1_000
    assert bench.held() == 1_000
    assert kong.decision["log"]["bound"][1] == sent
    assert bench.access(chat(max_tokens=5_000)).status == 429
    floor = Bench(**clamped, clamp_min_tokens=sent + 1)
    assert floor.access(chat(max_tokens=5_000)).status == 429
    both = Bench(**clamped).access(chat(max_tokens=5_000, n=2))
    assert both.status is None
    assert json.loads(both.decision["body"])["max_tokens"] <= sent // 2 + 1


def test_bounds_are_tightened_once_a_budget_is_scarce() -> None:
    """More than half held at byte bounds: the exact count replaces the bound in the background."""
    body = chat(messages=[{"role": "user", "content": "你好世界" * 50}], max_tokens=16)
    bench = Bench(budgets=[budget(limit=1_500)], chat_template="deepseek_r1", tokenizers={"deepseek-r1": "deepseek-r1"})
    assert bench.access(body).status is None
    bound = bench.held()
    assert bench.parts.tightens.join(timeout_s=5)
    assert bound > 750
    assert bench.held() < bound / 2


def test_roomy_budgets_are_never_tightened() -> None:
    """No tokenizer on the usual path."""
    bench = Bench(budgets=[budget(limit=100_000)], tokenizers={"deepseek-r1": "deepseek-r1"})
    bench.access()
    bound = bench.held()
    assert bench.parts.tightens.join(timeout_s=5)
    assert bench.held() == bound


@pytest.mark.parametrize(
    ("span_us", "text"),
    [(0, "0ms"), (-5, "0ms"), (20_000, "20ms"), (999_999, "1000ms"), (1_000_000, "1s"), (360_000_000, "6m0s")],
)
def test_durations_are_openais(span_us: int, text: str) -> None:
    """Rounded up, never down."""
    assert duration(span_us) == text


def test_no_header_value_can_hold_a_line_end() -> None:
    """Printable ASCII only, also with a hostile model name in a scoped budget's key."""
    assert header_value("a\r\nSet-Cookie: x\x00é") == "a??Set-Cookie: x??"
    bench = Bench(budgets=[budget(scope=["model"], limit=1_000)])
    headers = bench.access(chat(model='模"型\\')).decision["response"]
    assert all(re.fullmatch(r"[ -~]*", value) for value in headers.values())


def test_denials_are_recorded_only_where_asked_for() -> None:
    """One event, outcome denied, no usage."""
    quiet, loud = Bench(budgets=[budget(limit=10)]), Bench(budgets=[budget(limit=10)], record_denials=True)
    for bench in (quiet, loud):
        assert bench.access().status == 429
        bench.parts.records.join(timeout_s=5)
    assert quiet.events() == []
    (event,) = loud.events()
    assert (event["data"]["outcome"], event["data"]["prompt"], event["data"]["status"]) == ("denied", 0, 429)
