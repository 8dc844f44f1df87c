"""What the gate and the tap tell billing-events of requests that token-quota did not let through."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from test_usage_tap_phases import BODY, fresh

from kong_plugins.local_gateway.lua_host import LuaHost, LuaRequest

CONSUMER = {"id": "c1", "username": "acme"}


def token(claims: object) -> str:
    """As a client sends it; its signature is the jwt plugin's affair."""
    parts = (json.dumps({"alg": "HS256"}), json.dumps(claims), "signature")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def gate(host: LuaHost, request: LuaRequest, **config: Any) -> Any:
    assert request.access(host.plugin("usage-gate", config)) is None
    return request.shared_get("usage_gate")


def test_named_claims_of_a_verified_token_are_handed_on(host: LuaHost) -> None:
    """Text, numbers and booleans as text, bounded; others and those not named are not."""
    request = fresh(host)
    claims = {"org": "Größe ÿ", "n": 42, "x": 1.5, "admin": True, "roles": ["a"], "sub": "secret", "long": "a" * 999}
    request.shared_set("authenticated_jwt_token", token(claims))
    names = ["org", "n", "x", "admin", "roles", "long", "absent"]
    handed = gate(host, request, claims=names)["claims"]
    assert handed == {"org": "Größe ÿ", "n": "42", "x": "1.5", "admin": "true", "long": "a" * 256}


@pytest.mark.parametrize("jwt", [None, "", "x", "a.b.c", "..", "a.!!.c", 7, {"a": 1}, token([1]), token("x")])
def test_no_readable_token_is_no_claims(host: LuaHost, jwt: Any) -> None:
    """Whatever stands there: nothing is handed on and the request goes on."""
    request = fresh(host)
    if jwt is not None:
        request.shared_set("authenticated_jwt_token", jwt)
    assert "claims" not in gate(host, request, claims=["org"])
    assert "claims" not in gate(host, fresh(host))


def answered(host: LuaHost, request: LuaRequest, status: int, source: str, **config: Any) -> dict[str, Any]:
    """The tap's table at the end of the log phase."""
    tap = host.plugin("usage-tap", config)
    upstream = {"upstream_status": str(status)} if source == "service" else {}
    request.start_response(status, [(b"content-type", b"application/json")], source=source, **upstream)
    request.header_filter(tap)
    request.body_filter(tap, BODY, True)
    request.log(tap)
    table: dict[str, Any] = request.shared_get("usage_tap")
    return table


def test_a_route_without_token_quota_is_told_with_its_usage(host: LuaHost) -> None:
    """Consumer, credential, model, headers and claims outlive the answer; the body does not."""
    request = fresh(host)
    request.authenticate(CONSUMER, {"id": "k1", "key": "secret-key"})
    gate(host, request, headers=["accept-encoding"])
    assert request.access(host.plugin("usage-tap", {"guard": False})) is None
    assert request.shared_get("usage_gate") is None
    table = answered(host, request, 200, "service", guard=False)
    assert table["usage"] == {"prompt": 7, "completion": 3}
    assert table["endpoint"] == "chat"
    about = table["about"]
    assert about["consumer"] == CONSUMER
    assert len(about["credential"]) == 16
    assert about["headers"] == {"accept-encoding": "gzip"}
    assert "body" not in about


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"messages":[{"model":"no"}],"model":"deepseek-r1"}', "deepseek-r1"),
        ('{"model":"r\\u00e9sum\\u00e9"}', "résumé"),
        ('{"model":7}', None),
        ('{"model":null}', None),
        ('{"model":"' + "a" * 400 + '"}', None),
        ("no json", None),
    ],
)
def test_the_model_is_the_one_asked_for(host: LuaHost, body: str, model: str | None) -> None:
    """The top-level member, as text; nothing else is taken for it."""
    request = fresh(host)
    request.shared_set("usage_gate", {"v": 1, "body": body})
    assert request.access(host.plugin("usage-tap", {"guard": False})) is None
    assert answered(host, request, 200, "service", guard=False)["about"].get("model") == model


def test_a_refused_request_is_told_without_an_access_phase(host: LuaHost) -> None:
    """token-quota's own refusal: the gate ran, the tap did not."""
    request = fresh(host)
    request.authenticate(CONSUMER, {"id": "k1", "key": "secret-key"})
    gate(host, request)
    table = answered(host, request, 429, "exit")
    assert (table["about"]["consumer"], len(table["about"]["credential"])) == (CONSUMER, 16)


@pytest.mark.parametrize("decision", [{"v": 1, "allow": True}, {"v": 1, "allow": True, "log": {"hold": "h"}}])
def test_nothing_is_told_of_what_token_quota_let_through(host: LuaHost, decision: dict[str, Any]) -> None:
    """Metered: its log part tells all. Not metered: it is nobody's to bill."""
    request = fresh(host)
    request.shared_set("token_quota", decision)
    assert request.access(host.plugin("usage-tap", {})) is None
    assert "about" not in answered(host, request, 200, "service")


def test_nothing_is_told_of_a_path_that_is_not_metered(host: LuaHost) -> None:
    """A model list that key-auth refused is no denied generation."""
    assert "about" not in answered(host, fresh(host, "/v1/models"), 401, "exit")
