"""Tenants on one engine: places, priority, salts and the way to a cached prefix, as the plugin decides them."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from typing import Any

import gevent
import pytest
from scripted_kong import Bench, ScriptedKong, budget, chat

from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.salts import SaltKey, Sharing, salt_of
from kong_plugins.token_quota.config import ConfigError, QuotaConfig, parse_config

KEY = "a secret of more than 16 characters"
PUBLIC = "You answer questions about our opening hours."
GLOBEX = {"id": "1b2c", "username": "globex"}
MESSAGES = "/v1/messages"


def sent(kong: ScriptedKong) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(kong.decision["body"])
    return body


def upstream(kong: ScriptedKong) -> dict[str, str]:
    headers: dict[str, str] = kong.decision["upstream"]
    return headers


def ended(bench: Bench, admitted: ScriptedKong, took_s: float = 7.9) -> None:
    started_ms = int(time.time() * 1000 - took_s * 1000)
    bench.log(admitted, usage={"prompt": 3, "completion": 4}, evidence="exact", started_ms=started_ms)


def config(**more: Any) -> QuotaConfig:
    return parse_config({"ledger_url": "redis://127.0.0.1/0", **more}, {})


def with_system(text: str, user: str = "hi", **more: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "system", "content": text}, {"role": "user", "content": user}], **more)


def test_one_request_too_many_at_a_time_is_refused_before_its_budget_is_looked_at() -> None:
    """429 concurrency_limit with OpenAI's request headers; a place that is given back admits again."""
    bench = Bench(budgets=[budget(limit=100_000)], max_concurrent_requests=2)
    first, second = bench.access(), bench.access()
    assert first.decision["response"]["x-ratelimit-limit-requests"] == "2"
    assert first.decision["response"]["x-ratelimit-remaining-requests"] == "1"
    assert second.decision["response"]["x-ratelimit-remaining-requests"] == "0"
    held = bench.held()
    refused = bench.access()
    assert refused.status == 429
    assert refused.error["code"] == "concurrency_limit"
    assert refused.error["type"] == "rate_limit_exceeded"
    assert (refused.error["limit"], refused.error["running"]) == (2, 2)
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "1s"
    assert "x-ratelimit-remaining-tokens" not in refused.headers
    assert bench.held() == held
    ended(bench, first)
    assert bench.access().status is None


def test_a_refused_client_is_told_the_turn_that_requests_so_far_make_likely() -> None:
    """Nothing ended yet: a second. After one of 7.9 s on four places: 2 s, and 4 s for the one behind."""
    bench = Bench(max_concurrent_requests=4)
    running = [bench.access() for _ in range(4)]
    assert bench.access().headers["Retry-After"] == "1"
    ended(bench, running[0])
    bench.access()
    refused = [bench.access().headers for _ in range(2)]
    assert [headers["Retry-After"] for headers in refused] == ["2", "4"]
    assert 1_900 < int(refused[0]["retry-after-ms"]) < 2_100


def test_a_client_that_asks_as_soon_as_it_is_answered_has_its_place() -> None:
    """It got its answer before the log phase gave the place back: it is looked at once more, a moment later."""
    bench = Bench(max_concurrent_requests=1)
    answered = bench.access()
    settling = gevent.spawn(ended, bench, answered)
    assert bench.access().status is None
    settling.get(timeout=20)
    assert len(bench.ledger.holds) == 3


def test_a_flood_is_looked_at_no_more_than_twice() -> None:
    bench = Bench(max_concurrent_requests=1)
    bench.access()
    assert bench.access().status == 429
    assert len(bench.ledger.holds) == 3


def test_an_anthropic_client_is_refused_in_its_own_shape() -> None:
    bench = Bench(max_concurrent_requests=1)
    bench.access(path=MESSAGES)
    refused = bench.access(path=MESSAGES)
    assert refused.status == 429
    assert refused.error["type"] == "rate_limit_error"
    assert refused.error["code"] == "concurrency_limit"


def test_tenants_services_and_models_have_places_of_their_own() -> None:
    """A full tenant stops nobody else, nor itself on another service or with another model."""
    bench = Bench(max_concurrent_requests=2, max_concurrent_by_model={"deepseek-r1": 1})
    assert bench.access().status is None
    refused = bench.access()
    assert refused.status == 429
    assert "for model 'deepseek-r1'" in refused.error["message"]
    assert bench.access(consumer=GLOBEX).status is None
    assert bench.access(service={"id": "s2", "name": "another"}).status is None
    assert bench.access(chat(model="small")).status is None
    assert bench.access(chat(model="small")).status == 429


def test_whoever_holds_the_most_of_an_engine_is_refused_and_another_tenant_is_not() -> None:
    """429 engine_full, nothing held and nothing told of others; a request that ends makes room again."""
    bench = Bench(budgets=[budget(limit=100_000)], engine_places=5)
    flood = [bench.access() for _ in range(4)]
    assert [one.status for one in flood] == [None] * 4
    held = bench.held()
    refused = bench.access()
    assert refused.status == 429
    assert (refused.error["code"], refused.error["type"]) == ("engine_full", "rate_limit_exceeded")
    assert (refused.error["running"], refused.headers["Retry-After"]) == (4, "1")
    assert "nearly full" in refused.error["message"]
    assert bench.held() == held
    assert bench.access(consumer=GLOBEX).status is None
    full = bench.access(consumer={"id": "3", "username": "third"})
    assert full.error["message"] == "The engine is full. Try again in 1 s."
    assert bench.access(service={"id": "s2", "name": "another"}).status is None
    for one in flood[:2]:
        ended(bench, one)
    assert bench.parts.leaves.join(20)
    assert bench.access().status is None


def test_a_request_refused_for_another_reason_takes_no_place() -> None:
    """Over its budget, over its own limit, a retry of one that runs, the ledger out of reach: all give it back."""
    bench = Bench(budgets=[budget(limit=900)], engine_places=100, max_concurrent_requests=2)
    assert bench.access(idempotency_key="one").status is None
    assert bench.access(idempotency_key="one").status == 409
    assert bench.access().status is None
    assert bench.access().error["code"] == "concurrency_limit"
    assert bench.access(chat(max_tokens=1_000), consumer=GLOBEX).error["code"] == "request_exceeds_limit"
    bench.ledger.cut = True
    assert bench.access(consumer=GLOBEX).status == 503
    bench.ledger.cut = False
    assert bench.parts.leaves.join(20)
    assert taken(bench) == 2


def taken(bench: Bench) -> int:
    share = bench.plugin._config.sharing.share("deepseek-r1")
    assert share is not None
    return bench.places.enter(share, "who looks", "0").taken - 1


def test_a_burst_that_finds_the_engine_full_holds_nothing() -> None:
    """All ask at once while the engine is empty: place and hold are asked for together, and the holds of those that
    found no place are emptied."""
    bench = Bench(budgets=[budget(limit=100_000)], engine_places=5)
    burst = [gevent.spawn(bench.access) for _ in range(30)]
    gevent.joinall(burst, timeout=20)
    admitted = [one.value for one in burst if one.value.status is None]
    assert len(admitted) == 4
    assert {one.value.error["code"] for one in burst if one.value.status is not None} == {"engine_full"}
    assert bench.parts.releases.join(20)
    assert bench.held() == 4 * sum(admitted[0].decision["log"]["bound"])


def test_a_request_is_not_refused_because_places_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise LedgerUnavailable("the line is cut")

    bench = Bench(budgets=[budget(limit=100_000)], engine_places=1)
    monkeypatch.setattr(bench.places, "enter", away)
    assert [bench.access().status for _ in range(3)] == [None] * 3


def test_a_weight_alone_says_nothing() -> None:
    with pytest.raises(ConfigError, match="engine_weight: has no effect without engine_places"):
        config(engine_weight=3)
    share = config(engine_places=9, engine_weight=3).sharing.share("a/b")
    assert share is not None
    assert (share.key, share.places, share.weight) == ("service=a%2Fb", 9, 3)
    assert config().sharing.share("a") is None


def test_a_request_that_nobody_waits_for_any_more_gives_its_place_back() -> None:
    """The ledger's reply was lost: the hold took effect, the client got a 503."""
    bench = Bench(max_concurrent_requests=1)
    bench.ledger.lose_replies = True
    assert bench.access().status == 503
    bench.ledger.lose_replies = False
    assert bench.parts.releases.join(timeout_s=20)
    assert bench.access().status is None


def test_a_tenant_that_floods_costs_no_tokenizer() -> None:
    """Refused for its place, a prompt is not counted, however little its budget has left."""
    bench = Bench(budgets=[budget(limit=500)], max_concurrent_requests=1)
    assert bench.access().status is None
    assert bench.held() > 250
    bench.plugin._counter = None  # type: ignore[assignment]
    assert bench.access().error["code"] == "concurrency_limit"


def test_a_denied_place_is_recorded_where_denials_are() -> None:
    bench = Bench(max_concurrent_requests=1, record_denials=True)
    bench.access()
    bench.access()
    assert bench.parts.records.join(timeout_s=20)
    (event,) = [event for event in bench.events() if event["data"]["outcome"] == "denied"]
    assert event["data"]["over"] == ["requests|service=deepseek-r1"]


def test_rows_without_a_limit_ask_the_ledger_for_no_place() -> None:
    bench = Bench(budgets=[budget()])
    kong = bench.access()
    assert bench.ledger.holds[0].slots == ()
    assert "x-ratelimit-limit-requests" not in kong.decision["response"]


def test_priority_is_the_rows_and_never_the_clients() -> None:
    """In the body where the shape has it; where it has none, in the header that vLLM reads before the body."""
    assert sent(Bench(priority=-5).access(chat(priority=-100)))["priority"] == -5
    assert "priority" not in sent(Bench().access(chat(priority=-100)))
    assert upstream(Bench(priority=7).access(path=MESSAGES))["X-Vllm-Priority"] == "7"
    assert "X-Vllm-Priority" not in upstream(Bench(priority=7).access())


def test_who_shares_a_salt() -> None:
    """tenant: nobody. group: rows that name it. shared: there is none."""
    assert sent(Bench(cache_salt_key=KEY).access())["cache_salt"] == salt_of(
        Sharing.TENANT, "tenant_a", SaltKey("", KEY)
    )
    group = {"cache_salt": "group", "cache_group": "research"}
    ours, theirs = Bench(**group).access(), Bench(**group).access(consumer=GLOBEX)
    assert sent(ours)["cache_salt"] == sent(theirs)["cache_salt"] == salt_of(Sharing.GROUP, "research")
    assert "cache_salt" not in sent(Bench(cache_salt="shared").access(chat(cache_salt="stolen")))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", with_system(PUBLIC)),
        ("/v1/responses", {"model": "deepseek-r1", "instructions": PUBLIC, "input": "hi", "max_output_tokens": 9}),
        (MESSAGES, chat(system=PUBLIC)),
    ],
)
def test_a_public_prompt_is_shared_and_nothing_else(path: str, body: dict[str, Any]) -> None:
    """By all tenants whose rows name it, word for word, and only where the prompt begins with it."""
    digest = sha256(PUBLIC.encode()).hexdigest()
    bench = Bench(cache_shared_prompts=[digest], cache_salt_key=KEY)
    expected = salt_of(Sharing.PROMPT, digest, SaltKey("", KEY))
    for consumer in (GLOBEX, {"id": "5f6c", "username": "tenant_a"}):
        assert sent(bench.access(body, path=path, consumer=consumer))["cache_salt"] == expected
    own = salt_of(Sharing.TENANT, "tenant_a", SaltKey("", KEY))
    private = json.loads(json.dumps(body).replace(PUBLIC, PUBLIC + " "))
    assert sent(bench.access(private, path=path))["cache_salt"] == own
    assert sent(bench.access(chat(messages=[{"role": "user", "content": PUBLIC}])))["cache_salt"] == own
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert sent(bench.access(with_system(PUBLIC, tools=tools)))["cache_salt"] == own


def test_turns_of_a_conversation_go_to_one_rank_and_conversations_spread() -> None:
    """What follows the first user's message moves nobody; another one, another tenant's or another model's may."""
    bench = Bench(affinity="rank", affinity_ranks=4)
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    later = [*first, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Why?"}]

    def rank(**more: Any) -> str:
        kong = bench.access(**more)
        bench.log(kong, usage={"prompt": 3, "completion": 4}, evidence="exact")
        return upstream(kong)["X-data-parallel-rank"]

    assert rank(body=chat(messages=first)) == rank(body=chat(messages=later)) == rank(body=chat(messages=later, n=2))
    others = {rank(body=with_system("Be brief.", f"question {n}")) for n in range(20)}
    assert others == {"0", "1", "2", "3"}
    consumers = [{"id": str(n), "username": f"tenant-{n}"} for n in range(20)]
    assert len({rank(body=chat(messages=first), consumer=consumer) for consumer in consumers}) == 4


def test_with_few_bytes_all_that_share_a_system_prompt_go_together() -> None:
    bench = Bench(affinity="header", affinity_prefix_bytes=64)
    keys = {upstream(bench.access(with_system("x" * 100, str(n))))["xprefixaffinity"] for n in range(5)}
    assert len(keys) == 1
    bench = Bench(affinity="header", affinity_header="XCacheKey")
    keys = {upstream(bench.access(with_system("x" * 100, str(n))))["XCacheKey"] for n in range(5)}
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("path", "body", "has_way"),
    [
        ("/v1/completions", {"model": "m", "prompt": "Once", "max_tokens": 9}, True),
        ("/v1/completions", {"model": "m", "prompt": [1, 2], "max_tokens": 9}, True),
        ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 9}, True),
        ("/v1/responses", {"model": "m", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 9}, True),
        (MESSAGES, chat(system="Be brief."), True),
        ("/v1/chat/completions", chat(messages=[{"role": "assistant", "content": None}]), True),
        ("/v1/embeddings", {"model": "m", "input": "x"}, False),
    ],
)
def test_every_prompt_that_can_be_found_again_has_its_way(path: str, body: dict[str, Any], has_way: bool) -> None:
    kong = Bench(affinity="header").access(body, path=path)
    assert ("xprefixaffinity" in upstream(kong)) is has_way


def test_a_rank_forgets_requests_that_ended_or_never_were() -> None:
    """One settled, one refused: nothing is open anywhere, so the next goes where the first went; beside an open one it
    would go to the other rank."""
    row = {"affinity": "rank", "affinity_ranks": 2, "affinity_overload_percent": 100}
    bench = Bench(**row, budgets=[budget(limit=500)])
    kong = bench.access()
    assert bench.access().status == 429
    ended(bench, kong)
    assert upstream(bench.access()) == {**upstream(kong), "X-Request-Id": f"{3:032x}"}
    roomy = Bench(**row)
    assert len({upstream(roomy.access())["X-data-parallel-rank"] for _ in range(2)}) == 2


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"cache_salt": "group"}, "cache_group"),
        ({"cache_group": "research"}, "cache_group"),
        ({"cache_salt_key": "short"}, "cache_salt_key"),
        ({"cache_salt_key": ""}, "cache_salt_key"),  # Kong's value of a vault reference that it cannot resolve
        ({"cache_shared_prompts": [PUBLIC]}, "cache_shared_prompts"),
        ({"affinity": "rank"}, "affinity_ranks"),
        ({"affinity_ranks": 2}, "affinity_ranks"),
        ({"affinity": "header", "affinity_header": "x-prefix"}, "affinity_header"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests"),
        ({"max_concurrent_by_model": {"r1": 0}}, "max_concurrent_by_model"),
    ],
)
def test_a_row_that_cannot_work_names_its_field(row: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.{field}"):
        config(**row)


def test_the_salts_key_comes_from_row_or_environment_and_is_in_no_text() -> None:
    """A row's wins; neither repr nor an error shows it."""
    environ = {"TOKEN_QUOTA_CACHE_SALT_KEY": KEY}
    row = {"ledger_url": "redis://127.0.0.1/0"}
    assert parse_config(row, environ).sharing.salt_key == SaltKey("", KEY)
    assert parse_config({**row, "cache_salt_key": KEY * 2}, environ).sharing.salt_key == SaltKey("", KEY * 2)
    assert KEY not in repr(parse_config(row, environ))
    with pytest.raises(ConfigError) as error:
        config(cache_salt_key="tooshort")
    assert "tooshort" not in str(error.value)
