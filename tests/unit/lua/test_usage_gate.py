"""usage-gate: what it hands to token-quota, and what it keeps from the engine."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from lua_replays import PLUGINS

from kong_plugins.local_gateway.lua_host import ConfigError, LuaHost, LuaRequest, RequestState


def gated(host: LuaHost, config: dict[str, Any] | None = None, **state: Any) -> tuple[LuaRequest, dict[str, Any]]:
    values: dict[str, Any] = {"id": "r1", "method": "POST", "path": "/v1/chat/completions"} | state
    request = host.new_request(RequestState(**values))
    request.authenticate({"id": "c1", "username": "acme", "custom_id": "42"}, {"id": "k1", "key": "secret-key"})
    assert request.access(host.plugin("usage-gate", config or {})) is None
    return request, request.shared_get("usage_gate")


def test_everything_is_handed_over_in_one_table(host: LuaHost) -> None:
    """Every key of the interface, from the request as it came."""
    _, gate = gated(
        host,
        {"headers": ["X-Team", "x-absent"]},
        headers=[(b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip"), (b"Accept", b"*/*"),
                 (b"x-team", b"blue"), (b"x-team", b"red"), (b"_method", b"plugin.Zap")],
        body=b'{"\xff":1}', forwarded_ip="10.0.0.9", service={"id": "s", "name": "llm", "host": "h"}, route={"id": "r"},
    )  # fmt: skip
    assert gate == {
        "v": 1, "id": "r1", "method": "POST", "path": "/v1/chat/completions", "type": "application/json",
        "encoding": "gzip", "accept": "*/*",
        "body": '{"\udcff":1}', "size": 7, "ip": "10.0.0.9", "headers": {"x-team": "blue"},
        "consumer": {"id": "c1", "username": "acme", "custom_id": "42"}, "service": {"id": "s", "name": "llm"},
        "route": {"id": "r"},
        "credential": {"id": "k1", "hash": sha256(b"token-quota:secret-key").hexdigest()[:16]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "key", "keys", "count"),
    [
        ([], None, None, None),
        ([(b"Idempotency-Key", b'"a b"'), (b"X-Stainless-Retry-Count", b"2")], '"a b"', None, "2"),
        ([(b"idempotency-key", b"one"), (b"Idempotency-Key", b"two")], "one", 2, None),
        ([(b"x-stainless-retry-count", b"0"), (b"x-stainless-retry-count", b"1")], None, None, "0"),
    ],
)
def test_what_tells_of_a_retry_is_handed_over(
    host: LuaHost, headers: list[tuple[bytes, bytes]], key: str | None, keys: int | None, count: str | None
) -> None:
    """The key as sent and how many came, and an SDK's count; the key is nobody's behind the gate, the count goes on."""
    request, gate = gated(host, headers=headers)
    assert (gate.get("idempotency_key"), gate.get("idempotency_keys"), gate.get("retry_count")) == (key, keys, count)
    assert all(name.lower() == b"x-stainless-retry-count" for name, _ in request.headers)


def test_no_body_is_no_body(host: LuaHost) -> None:
    """An empty body is absent with size 0; absent parts are absent, not empty tables."""
    _, gate = gated(host, method="GET")
    assert (gate["size"], "body" in gate, "refused" in gate, "headers" in gate) == (0, False, False, False)


@pytest.mark.parametrize(("size", "refused"), [(9000, None), (10_000, None), (10_001, "too_large")])
def test_bodies_in_files_are_read_up_to_the_bound(host: LuaHost, size: int, refused: str | None) -> None:
    """A body past nginx's buffer is read from its file; one past max_body_bytes is refused."""
    body = b"x" * size
    for headers in ([], [(b"content-length", str(size).encode())]):
        _, gate = gated(host, {"max_body_bytes": 10_000}, headers=headers, body=body)
        assert gate.get("refused") == refused
        assert ("body" in gate) == (refused is None)


def test_bodies_in_memory_are_bounded_too(host: LuaHost) -> None:
    """A bound below nginx's own buffer holds."""
    _, gate = gated(host, {"max_body_bytes": 10}, body=b"x" * 11)
    assert (gate["refused"], gate["size"], "body" in gate) == ("too_large", 11, False)


def test_a_length_too_large_is_refused_unread(host: LuaHost) -> None:
    """With a Content-Length past the bound the body is not read at all."""
    request = host.new_request(
        RequestState(id="r1", method="POST", path="/", headers=[(b"content-length", b"99999999")])
    )
    request._table[b"body"] = None  # reading it would fail
    assert request.access(host.plugin("usage-gate", {})) is None
    gate = request.shared_get("usage_gate")
    assert (gate["refused"], gate["size"]) == ("too_large", 99999999)


def test_a_body_that_cannot_be_read_is_unreadable(host: LuaHost, logged: list[tuple[str, str]]) -> None:
    """A failing read is handed over, not thrown: token-quota answers."""
    request = host.new_request(RequestState(id="r1", method="POST", path="/"))
    request._table[b"body"] = None
    assert request.access(host.plugin("usage-gate", {})) is None
    assert request.shared_get("usage_gate")["refused"] == "unreadable"
    assert [level for level, _ in logged] == ["err"]


@pytest.mark.parametrize(
    ("connection", "refused"),
    [
        ([b"keep-alive"], None),
        ([b"close, TE"], None),
        ([b"Upgrade, HTTP2-Settings"], None),
        ([b"content-length"], "connection_header"),
        ([b"keep-alive,Content-Length"], "connection_header"),
        ([b"close", b"x-request-id"], "connection_header"),
        ([b"accept-encoding\tclose"], "connection_header"),
    ],
)
def test_a_client_cannot_have_kong_drop_headers(host: LuaHost, connection: list[bytes], refused: str | None) -> None:
    """`Connection: content-length` would leave the engine a body without its length: another request, unmetered."""
    headers = [(b"Connection", value) for value in connection]
    _, gate = gated(host, headers=headers, body=b"{}")
    assert gate.get("refused") == refused
    assert ("body" in gate) == (refused is None)


def test_credentials_and_forged_headers_stay_here(host: LuaHost) -> None:
    """Keys in headers and query, identity and engine headers, also written with underscores; the rest goes upstream."""
    names = [b"Authorization", b"apikey", b"X-API-Key", b"x-authenticated-userid", b"X_Authenticated_Groups",
             b"X-data-parallel-rank", b"X-Vllm-Priority", b"X-Session-ID", b"XPrefixAffinity",
             b"x-request-id"]  # fmt: skip
    request, _ = gated(
        host, headers=[*((name, b"v") for name in names), (b"x-team", b"blue")], query=b"apikey=secret&a=1&X=apikey"
    )
    assert request.headers == [(b"x-team", b"blue")]
    assert request.query == b"a=1&X=apikey"


def test_the_key_is_nowhere_in_what_is_handed_over(host: LuaHost) -> None:
    """Neither the key nor its bare hash."""
    _, gate = gated(host, headers=[(b"authorization", b"Bearer secret-key")])
    assert "secret-key" not in repr(gate)
    assert sha256(b"secret-key").hexdigest()[:16] not in repr(gate)


def test_config_errors_name_the_field(host: LuaHost) -> None:
    """Unknown fields and values out of bounds, as Kong words them."""
    with pytest.raises(ConfigError, match=r"config\.max_body_bites: unknown field"):
        host.plugin("usage-gate", {"max_body_bites": 1})
    with pytest.raises(ConfigError, match=r"config\.max_body_bytes: value should be between 1 and"):
        host.plugin("usage-gate", {"max_body_bytes": 0})
    with pytest.raises(ConfigError, match=r"config\.guard: expected a boolean"):
        host.plugin("usage-tap", {"guard": "yes"})


def test_a_plugin_servers_process_is_no_part_of_kongs_configuration(host: LuaHost) -> None:
    """Kong's code finds it where it put it; what goes through the configuration, as the Admin API does, does not."""
    keep_apart = host.lua.execute((PLUGINS / "usage-gate" / "processes.lua").read_bytes())
    servers = host.lua.table_from([host.lua.table_from({b"name": b"token_quota"})])
    keep_apart(servers)
    keep_apart(None)  # a Kong without plugin servers
    server = servers[1]
    assert server[b"proc"] is None
    for process in (b"first", b"second"):
        server[b"proc"] = process
        assert server[b"proc"] == process
    server[b"protocol"] = b"MsgPack:1"
    assert dict(server.items()) == {b"name": b"token_quota", b"protocol": b"MsgPack:1"}
