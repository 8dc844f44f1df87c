"""What the engine gets: the request as it was metered, with the tenant's own engine fields and no forged ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.adapters.openai_wire import WireRules, parse, rewrite
from kong_plugins.adapters.openai_wire.fields import DROPPED
from kong_plugins.domain.demand import Endpoint

RULES = WireRules(context_tokens=8192)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "hi", "max_tokens": 5},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "hi"},
    Endpoint.RESPONSES: {"model": "m", "input": "hi"},
    Endpoint.MESSAGES: {**CHAT, "max_tokens": 5},
}


def rewritten(endpoint: Endpoint, body: dict[str, Any], rules: WireRules = RULES, **asked: Any) -> dict[str, Any]:
    result = json.loads(rewrite(parse(endpoint, json.dumps(body).encode(), rules), **asked))
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("endpoint", Endpoint)
def test_a_request_that_needs_nothing_goes_on_as_it_is(endpoint: Endpoint) -> None:
    assert rewritten(endpoint, BODIES[endpoint]) == BODIES[endpoint]


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_streams_of_completions_are_asked_for_final_and_running_usage(endpoint: Endpoint) -> None:
    sent = rewritten(endpoint, {**BODIES[endpoint], "stream": True})
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_streams_that_always_carry_usage_get_no_stream_options(endpoint: Endpoint) -> None:
    assert "stream_options" not in rewritten(endpoint, {**BODIES[endpoint], "stream": True})


def test_the_clients_stream_options_are_kept_and_cannot_turn_usage_off() -> None:
    options = {"include_usage": False, "continuous_usage_stats": False, "include_obfuscation": False}
    body = {**CHAT, "stream": True, "stream_options": options}
    assert rewritten(Endpoint.CHAT, body)["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": True,
        "include_obfuscation": False,
    }
    assert rewritten(Endpoint.CHAT, body, include_usage=False, continuous=False)["stream_options"] == options


@pytest.mark.parametrize("options", [None, {}])
def test_empty_stream_options_without_a_stream_are_left_out(options: Any) -> None:
    assert "stream_options" not in rewritten(Endpoint.CHAT, {**CHAT, "stream_options": options})


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ({}, True),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": None}, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
    ],
)
def test_whether_the_client_asked_for_usage_is_known(options: dict[str, Any], wants: bool) -> None:
    assert parse(Endpoint.CHAT, json.dumps({**CHAT, **options}).encode(), RULES).demand.wants_usage is wants


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("name", DROPPED)
def test_engine_state_of_the_clients_making_never_reaches_the_engine(endpoint: Endpoint, name: str) -> None:
    for forged in ("x", 5, {"a": 1}, None, [1]):
        assert name not in rewritten(endpoint, {**BODIES[endpoint], name: forged})


@pytest.mark.parametrize("endpoint", Endpoint)
def test_the_tenants_cache_salt_replaces_the_clients(endpoint: Endpoint) -> None:
    sent = rewritten(endpoint, {**BODIES[endpoint], "cache_salt": "another-tenant"}, cache_salt="ours")
    assert sent["cache_salt"] == "ours"


def test_the_operators_priority_replaces_the_clients() -> None:
    assert rewritten(Endpoint.CHAT, {**CHAT, "priority": -5}, priority=3)["priority"] == 3


@pytest.mark.parametrize(
    ("endpoint", "given", "sent"),
    [
        (Endpoint.CHAT, {}, {"max_tokens": 7}),
        (Endpoint.CHAT, {"max_tokens": 100}, {"max_tokens": 7}),
        (Endpoint.CHAT, {"max_tokens": None}, {"max_tokens": 7}),
        (Endpoint.CHAT, {"max_completion_tokens": 100}, {"max_completion_tokens": 7}),
        (Endpoint.CHAT, {"max_tokens": 3, "max_completion_tokens": 100}, {"max_tokens": 3, "max_completion_tokens": 7}),
        (Endpoint.COMPLETIONS, {"max_tokens": 100}, {"max_tokens": 7}),
        (Endpoint.RESPONSES, {}, {"max_output_tokens": 7}),
        (Endpoint.RESPONSES, {"max_output_tokens": 100}, {"max_output_tokens": 7}),
        (Endpoint.MESSAGES, {"max_tokens": 100}, {"max_tokens": 7}),
        (Endpoint.EMBEDDINGS, {}, {}),
    ],
)
def test_a_clamp_lowers_the_limit_in_the_field_the_engine_reads(
    endpoint: Endpoint, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = {**BODIES[endpoint], **given}
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    result = rewritten(endpoint, body, max_tokens=7)
    assert {name: result[name] for name in limits if name in result} == sent


def test_a_clamp_never_raises_the_limit() -> None:
    assert rewritten(Endpoint.CHAT, {**CHAT, "max_tokens": 5}, max_tokens=700)["max_tokens"] == 5


def test_of_both_limits_the_larger_is_metered() -> None:
    body = {**CHAT, "max_tokens": 5, "max_completion_tokens": 9}
    assert parse(Endpoint.CHAT, json.dumps(body).encode(), RULES).demand.max_tokens == 9
    body = {**CHAT, "max_tokens": 9, "max_completion_tokens": 5}
    assert parse(Endpoint.CHAT, json.dumps(body).encode(), RULES).demand.max_tokens == 9


def test_a_default_is_metered_and_written() -> None:
    rules = WireRules(context_tokens=8192, default_max_tokens=33)
    assert parse(Endpoint.CHAT, json.dumps(CHAT).encode(), rules).demand.max_tokens == 33
    assert rewritten(Endpoint.CHAT, CHAT, rules)["max_tokens"] == 33
    assert rewritten(Endpoint.CHAT, {**CHAT, "max_tokens": 99}, rules)["max_tokens"] == 99


def test_the_default_of_completions_is_written_so_that_every_engine_keeps_to_it() -> None:
    body = {"model": "m", "prompt": "hi"}
    assert parse(Endpoint.COMPLETIONS, json.dumps(body).encode(), RULES).demand.max_tokens == 16
    assert rewritten(Endpoint.COMPLETIONS, body)["max_tokens"] == 16


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8).map("x_".__add__), _values, max_size=4), st.booleans())
def test_every_other_field_passes_with_its_value(extra: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps({**CHAT, **extra}, ensure_ascii=ascii_only, indent=2).encode()
    assert json.loads(rewrite(parse(Endpoint.CHAT, body, RULES))) == {**CHAT, **extra}


def test_a_number_too_long_for_a_double_passes_digit_for_digit() -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"seed":12345678901234567890123,"temperature":1e-400}'
    )
    sent = rewrite(parse(Endpoint.CHAT, body, RULES))
    assert b"12345678901234567890123" in sent
    assert b"1e-400" in sent
