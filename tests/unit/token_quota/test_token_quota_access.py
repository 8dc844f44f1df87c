"""token-quota's access phase: one table in, one decision or one answer out."""

from __future__ import annotations

import json
from typing import Any

import gevent
import pytest
from scripted_kong import Bench, ScriptedKong, budget, chat

from kong_plugins.domain.salts import Sharing, salt_of


def test_an_admitted_request_costs_two_calls_and_is_held_at_its_bound() -> None:
    """One get and one set; the hold covers prompt bytes and max_tokens; the decision is what the tap needs."""
    bench = Bench(budgets=[budget()])
    kong = bench.access()
    assert kong.calls == ["ctx.shared.get usage_gate", "ctx.shared.set token_quota"]
    decision = kong.decision
    assert decision["allow"] is True
    assert decision["v"] == 1
    assert decision["meter"] == {"endpoint": "chat", "stream": False, "hide_usage": False}
    assert decision["upstream"] == {"X-Request-Id": f"{1:032x}"}
    assert decision["log"]["tenant"] == "tenant_a"
    prompt_bound, completion_bound = decision["log"]["bound"]
    assert completion_bound == 64
    assert bench.held() == prompt_bound + completion_bound > 64


def test_the_engine_gets_our_usage_flags_and_the_tenants_salt() -> None:
    """A stream carries running and final usage, the tenant's cache salt, and not the client's own fields for either."""
    bench = Bench(budgets=[budget(limit=10_000)])
    kong = bench.access(chat(stream=True, cache_salt="stolen", request_id="other"))
    body = json.loads(kong.decision["body"])
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["cache_salt"] == salt_of(Sharing.TENANT, "tenant_a") != salt_of(Sharing.TENANT, "tenant_b")
    assert "request_id" not in body
    assert kong.decision["meter"]["hide_usage"] is True
    asked = bench.access(chat(stream=True, stream_options={"include_usage": True}))
    assert asked.decision["meter"]["hide_usage"] is False
    shared = Bench(cache_salt="shared").access(chat(cache_salt="stolen"))
    assert "cache_salt" not in json.loads(shared.decision["body"])


def test_an_admitted_request_is_told_what_is_left() -> None:
    """OpenAI's headers for the tightest token budget, the IETF draft's for every hard one."""
    bench = Bench(budgets=[budget(), budget("hour", 500, window="hour"), budget("try", 1, mode="shadow")])
    headers = bench.access().decision["response"]
    assert headers["x-ratelimit-limit-tokens"] == "500"
    assert int(headers["x-ratelimit-remaining-tokens"]) == 500 - bench.ledger.holds[0].lines[1].amount
    assert headers["x-ratelimit-reset-tokens"] == "1h0m0s"
    assert headers["RateLimit-Policy"] == '"daily";q=1000;w=86400;qu="tokens", "hour";q=500;w=3600;qu="tokens"'
    assert headers["RateLimit"].startswith('"daily";r=')
    assert headers["RateLimit"].endswith(";t=3600")


BAD: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "malformed": ({"body": b'{"model": '}, 400, None),
    "empty": ({"body": b""}, 400, None),
    "no body": ({"size": 0}, 400, None),
    "too large": ({"size": 10_485_760, "refused": "too_large"}, 413, None),
    "unreadable": ({"size": 0, "refused": "unreadable"}, 400, None),
    "gzip": ({"encoding": "gzip"}, 415, None),
    "form": ({"type": "multipart/form-data; boundary=x"}, 415, None),
    "no type": ({"type": None}, 415, None),
    "utf-16": ({"type": "application/json; charset=utf-16"}, 415, None),
    "duplicate keys": ({"body": b'{"model":"a","model":"b","messages":[]}'}, 400, None),
    "invalid utf-8": ({"body": b'{"model":"a\xff","messages":[]}'}, 400, None),
    "missing model": ({"body": b'{"messages":[{"role":"user","content":"x"}]}'}, 400, "model"),
    "n 64": ({"body": json.dumps(chat(n=64)).encode()}, 400, "n"),
    "negative max": ({"body": json.dumps(chat(max_tokens=-1)).encode()}, 400, "max_tokens"),
    "float max": ({"body": json.dumps(chat(max_tokens=1.5)).encode()}, 400, "max_tokens"),
    "unknown part": (
        {"body": json.dumps(chat(messages=[{"role": "user", "content": [{"type": "hologram"}]}])).encode()},
        400,
        None,
    ),
    "stored prompt": (
        {"path": "/v1/responses", "body": b'{"model":"m","input":"x","previous_response_id":"r"}'},
        400,
        "previous_response_id",
    ),
    "connection": ({"size": 0, "refused": "connection_header"}, 400, None),
    "get": ({"method": "GET", "size": 0}, 405, None),
    "other path": ({"path": "/v1/models", "method": "GET", "size": 0}, 404, None),
    "nobody": ({"consumer": None}, 401, None),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_refusal_and_holds_nothing(case: str) -> None:
    """A 4xx in OpenAI's error shape that names the field, one get and one exit, and no hold."""
    gate, status, param = BAD[case]
    bench = Bench(budgets=[budget()])
    kong = bench.access(**gate)
    assert kong.status == status, kong.exit
    assert kong.calls == ["ctx.shared.get usage_gate", "response.exit"]
    assert set(kong.error) >= {"message", "type", "param", "code"}
    assert len(kong.error["message"]) > 3
    if param is not None:
        assert kong.error["param"] == param
    assert kong.headers["Content-Type"] == "application/json"
    assert bench.ledger.holds == []


def test_headers_to_drop_are_refused_on_allowed_paths_too() -> None:
    """What the engine would read as the next request is one that nobody metered."""
    bench = Bench(budgets=[budget()], unmetered_paths="allow")
    assert bench.access(path="/v1/models", size=0, refused="connection_header").status == 400
    assert bench.access(path="/v1/models", size=0).decision["allow"] is True


HUGE = 10**30
METERED: dict[str, Any] = {
    "_method": chat(_method="plugin.CloseInstance"),
    "both fields": chat(max_completion_tokens=128),
    "no max tokens": {k: v for k, v in chat().items() if k != "max_tokens"},
    "n 2": chat(n=2),
}


@pytest.mark.parametrize("case", METERED)
def test_odd_but_valid_input_is_metered(case: str) -> None:
    """Held before it is let through."""
    bench = Bench(budgets=[budget(limit=100_000)])
    kong = bench.access(METERED[case])
    assert kong.decision["allow"] is True
    assert bench.held() >= {"both fields": 128, "n 2": 128, "no max tokens": 4_096}.get(case, 64)


def test_a_huge_limit_never_becomes_a_small_hold() -> None:
    """Either refused as a value, or held at what no budget has; never let through."""
    bench = Bench(budgets=[budget(limit=2**50)])
    kong = bench.access(chat(max_tokens=HUGE))
    assert kong.status in (400, 429)
    kong = bench.access(chat(max_tokens=2**31 - 1))
    assert kong.status in (400, 429) or bench.held() > 2**31 - 1


def test_token_id_prompts_are_metered() -> None:
    """Ids are counted as they are."""
    bench = Bench(budgets=[budget()])
    kong = bench.access({"model": "m", "prompt": [1, 2, 3], "max_tokens": 5}, path="/v1/completions")
    assert kong.decision["meter"]["endpoint"] == "completions"
    assert bench.held() >= 3 + 5


@pytest.mark.parametrize("gate", [None, [], {}, {"v": 2}, {"v": 1, "id": "x"}])
def test_without_the_gate_nothing_passes(gate: Any) -> None:
    """503 with the fix, whatever stands where the gate's table should be."""
    bench = Bench(budgets=[budget()])
    kong = ScriptedKong(usage_gate=gate).run(bench.plugin.access)
    assert kong.status == 503
    assert "usage-gate is not enabled on this route" in kong.error["message"]


def test_unmetered_paths_pass_only_where_the_operator_allows_it() -> None:
    """allow: a decision without a meter and without a hold. A metered endpoint stays metered."""
    bench = Bench(budgets=[budget()], unmetered_paths="allow")
    kong = bench.access(path="/v1/models", method="GET", size=0)
    assert kong.decision == {"v": 1, "allow": True}
    assert bench.ledger.holds == []
    assert bench.access(method="GET").status == 405
    assert bench.access(path="/v1/chat%2Fcompletions/").decision["meter"]["endpoint"] == "chat"
    # The gate's own failure: it knows no path, and the request's may be a metered one.
    failed = bench.access(path="", method="", size=0, refused="unreadable")
    assert (failed.status, "token_quota" in failed.tables) == (400, False)


@pytest.mark.parametrize(
    ("config", "gate", "tenant"),
    [
        ({}, {}, "tenant_a"),
        ({}, {"consumer": {"id": "5f6c", "custom_id": "c-9"}}, "custom_id:c-9"),
        ({}, {"consumer": {"id": "5f6c", "username": "c-9", "custom_id": "d-1"}}, "c-9"),
        ({"identity": "credential"}, {}, "credential:0123456789abcdef"),
        ({"identity": "ip"}, {"consumer": None}, "ip:10.1.2.3"),
        ({"identity": "header", "identity_header": "X-Org"}, {"headers": {"x-org": "acme"}}, "header:acme"),
    ],
)
def test_the_tenant_is_who_the_operator_said(config: dict[str, Any], gate: dict[str, Any], tenant: str) -> None:
    """Each kind of identity; all but a consumer's carries its kind, so that none can take a consumer's name."""
    assert Bench(**config).access(**gate).decision["log"]["tenant"] == tenant


@pytest.mark.parametrize("value", [None, "", "a b", "x" * 129, "\udcff\udc80", "a\r\nb"])
def test_a_header_identity_is_printable_or_refused(value: str | None) -> None:
    """Also bytes that are no UTF-8 and a line end."""
    bench = Bench(identity="header", identity_header="x-org")
    kong = bench.access(headers=None if value is None else {"x-org": value})
    assert kong.status == 401
    assert bench.ledger.holds == []


def test_counters_are_apart_by_scope() -> None:
    """A budget scoped by model and route has a counter for each pair, and a model's name cannot forge another's key."""
    bench = Bench(budgets=[budget(scope=["model", "route"], limit=10_000)])
    bench.access(chat(model="a"))
    bench.access(chat(model="a|route=v2"))
    keys = [hold.lines[0].key for hold in bench.ledger.holds]
    assert keys == ["daily|model=a|route=v1", "daily|model=a%7Croute%3Dv2|route=v1"]


def test_a_cut_ledger_closes_the_route() -> None:
    """503 with Retry-After: nothing passes unmetered."""
    bench = Bench(budgets=[budget()])
    bench.ledger.cut = True
    kong = bench.access()
    assert kong.status == 503
    assert kong.headers["Retry-After"] == "1"
    assert kong.error["code"] == "ledger_unavailable"


def test_a_lost_reply_does_not_keep_the_budget() -> None:
    """The hold took effect and nobody knows: it is emptied in the background, so the tenant can go on."""
    bench = Bench(budgets=[budget()])
    bench.ledger.lose_replies = True
    assert bench.access().status == 503
    assert bench.held() > 0
    assert bench.parts.releases.join(timeout_s=5)
    assert bench.held() == 0


def test_no_reply_lost_in_a_stall_keeps_its_budget() -> None:
    """A store that answers too late leaves hundreds of holds that nobody will settle: every one is emptied, also when
    the store is away for a while after."""
    bench = Bench(budgets=[budget(limit=10_000_000)])
    bench.ledger.lose_replies = True
    for _ in range(300):
        assert bench.access().status == 503
    bench.ledger.lose_replies = False
    bench.ledger.cut = True
    gevent.sleep(0.3)
    assert bench.held() > 0
    bench.ledger.cut = False
    assert bench.parts.releases.join(timeout_s=5)
    assert bench.held() == 0


class _GoneError(BaseException):
    """What the plugin server raises when Kong waits for an event no longer."""


def test_a_hold_that_kong_did_not_wait_for_is_emptied() -> None:
    """The decision came too late: the client has its 503, no log phase tells of the hold, the budget is free again."""
    bench = Bench(budgets=[budget()])
    kong = ScriptedKong(usage_gate=bench.gate())

    def gone(_key: str, _value: object) -> None:
        raise _GoneError

    kong.ctx.shared.set = gone
    with pytest.raises(_GoneError):
        bench.plugin.access(kong)
    assert bench.held() > 0
    assert bench.parts.releases.join(timeout_s=5)
    assert bench.held() == 0


def test_soft_and_shadow_budgets_let_through_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """The event names them, and the log has one line for a tenant and budget."""
    bench = Bench(budgets=[budget("soft", 1, mode="soft"), budget("trial", 1, mode="shadow")])
    for _ in range(3):
        assert bench.access().decision["log"]["over"] == ["soft", "trial"]
    assert [record.getMessage().split(" budget ")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "tenant 'tenant_a' is over its soft",
        "tenant 'tenant_a' is over its shadow",
    ]


def test_cost_budgets_count_micro_units_by_the_models_own_price() -> None:
    """A model's price where there is one, else the one for any other."""
    prices = [
        {"model": "a", "prompt": 1_000_000, "completion": 2_000_000, "request": 7},
        {"model": "*", "prompt": 0, "completion": 1_000_000},
    ]
    bench = Bench(budgets=[budget(counts="cost", prices=prices, limit=10_000)])
    prompt, completion = bench.access(chat(model="a")).decision["log"]["bound"]
    assert bench.ledger.holds[0].lines[0].amount == prompt + 2 * completion + 7
    bench.access(chat(model="b"))
    assert bench.ledger.holds[1].lines[0].amount == 64
