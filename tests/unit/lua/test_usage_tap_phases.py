"""usage-tap around the answer: guard, decision, headers, answers it does not read, requests that never got to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lua_replays import started, streamed

from kong_plugins.local_gateway.lua_host import LuaHost, LuaRequest, RequestState

BODY = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'


def fresh(host: LuaHost, path: str = "/v1/chat/completions") -> LuaRequest:
    return host.new_request(
        RequestState(
            id="r1", method="POST", path=path, headers=[(b"accept-encoding", b"gzip")], body=b"{}", started=12.5
        )
    )


@pytest.mark.parametrize(
    "decision",
    [None, {}, {"allow": False}, {"allow": "true"}, {"allow": 1}, True, "yes", [], {"allow": True, "body": 7},
     {"allow": True, "upstream": "x"},
     {"allow": True, "upstream": {"x-a": {"y": "z"}, "": 1}, "meter": {"endpoint": "nope"}},
     {"allow": True, "meter": {}}],
)  # fmt: skip
def test_no_applicable_decision_is_a_503(host: LuaHost, decision: Any) -> None:
    """Nothing, no `allow: true`, or a decision that cannot be applied: an OpenAI error, not the engine."""
    request = fresh(host)
    request.shared_set("token_quota", decision)
    answer = request.access(host.plugin("usage-tap", {}))
    assert answer is not None
    assert answer.status == 503
    headers = {name.lower(): value for name, value in answer.headers}
    assert (headers[b"content-type"], headers[b"retry-after"]) == (b"application/json", b"1")
    error = json.loads(answer.body or b"")["error"]
    assert (error["code"], error["type"], error["param"]) == ("quota_decision_missing", "server_error", None)


def test_decision_is_applied_and_the_body_freed(host: LuaHost) -> None:
    """Body, upstream headers and identity encoding go upstream; usage_gate is gone; the log part is handed on."""
    request = fresh(host)
    request.shared_set("usage_gate", {"v": 1, "body": "x" * 1000})
    request.shared_set(
        "token_quota",
        {"v": 1, "allow": True, "body": '{"a":1}', "upstream": {"x-request-id": "r1"}, "response": {"x-left": "5"},
         "meter": {"endpoint": "chat", "stream": False, "hide_usage": False}, "log": {"hold": "h", "n": [1, 2]}},
    )  # fmt: skip
    tap = host.plugin("usage-tap", {})
    assert request.access(tap) is None
    headers = dict(request.headers)
    assert request.body == b'{"a":1}'
    assert (headers[b"x-request-id"], headers[b"Accept-Encoding"], headers[b"Content-Length"]) == (
        b"r1",
        b"identity",
        b"7",
    )
    assert request.shared_get("usage_gate") is None
    assert "body" not in request.shared_get("token_quota")
    request.start_response(
        200, [(b"content-type", b"application/json"), (b"X-Left", b"99")], upstream_status="200", proxy_ms=41
    )
    request.header_filter(tap)
    assert [value for name, value in request.response_headers if name.lower() == b"x-left"] == [b"5"]
    assert streamed(host, request, [BODY]) == BODY
    shared = request.shared_get("usage_tap")
    assert {key: shared[key] for key in ("v", "log", "request_id", "endpoint", "stream", "status", "upstream_status",
                                         "source", "started_ms", "proxy_ms", "ended")} == {
        "v": 1, "log": {"hold": "h", "n": [1, 2]}, "request_id": "r1", "endpoint": "chat", "stream": False,
        "status": 200,
        "upstream_status": "200", "source": "service", "started_ms": 12500, "proxy_ms": 41, "ended": True,
    }  # fmt: skip
    assert shared["last_ms"] >= shared["first_ms"] > 12500


def test_unmetered_path_passes_unread(host: LuaHost) -> None:
    """A decision without `meter`: allowed, nothing parsed, encodings left to client and upstream."""
    tap = host.plugin("usage-tap", {})
    request = fresh(host)
    request.shared_set("token_quota", {"v": 1, "allow": True})
    assert request.access(tap) is None
    assert dict(request.headers)[b"accept-encoding"] == b"gzip"
    request.start_response(200, [(b"content-type", b"application/json")])
    request.header_filter(tap)
    assert streamed(host, request, [BODY]) == BODY
    assert "usage" not in request.shared_get("usage_tap")


def test_without_guard_the_path_tells_the_endpoint(host: LuaHost) -> None:
    """guard=false on a route without token-quota: served, and usage read all the same; other paths unread."""
    tap = host.plugin("usage-tap", {"guard": False})
    for path, metered in (("/chat/completions", True), ("/v1/models", False)):
        request = fresh(host, path)
        assert request.access(tap) is None
        request.start_response(200, [(b"content-type", b"application/json")])
        request.header_filter(tap)
        request.body_filter(tap, BODY, True)
        assert ("usage" in request.shared_get("usage_tap")) == metered


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"GZIP"])
def test_encoded_answers_are_passed_unread(host: LuaHost, logged: list[tuple[str, str]], encoding: bytes) -> None:
    """An upstream that compresses anyway: bytes pass, no evidence, one warning."""
    request = started(host, content_type="application/json", headers=((b"Content-Encoding", encoding),))
    assert streamed(host, request, [BODY]) == BODY
    assert "usage" not in request.shared_get("usage_tap")
    assert [level for level, _ in logged] == ["warn"]


@pytest.mark.parametrize("status", [201, 400, 429, 500, 503])
def test_only_a_200_is_read(host: LuaHost, status: int) -> None:
    """Whatever an error body claims is not usage."""
    request = started(host, content_type="application/json", status=status)
    assert streamed(host, request, [BODY]) == BODY
    shared = request.shared_get("usage_tap")
    assert ("usage" in shared, shared["status"]) == (False, status)


def test_content_length_goes_only_where_bytes_go(host: LuaHost) -> None:
    """Hiding usage in a stream clears Content-Length; every other answer keeps it."""
    length = ((b"Content-Length", b"70"),)
    kept = [
        started(host, headers=length),
        started(host, hide=True, stream=True, content_type="application/json", headers=length),
        started(host, "messages", hide=True, headers=length),
    ]
    assert all((b"Content-Length", b"70") in request.response_headers for request in kept)
    assert not any(name == b"Content-Length" for name, _ in started(host, hide=True, headers=length).response_headers)


def test_a_refused_request_still_has_its_table(host: LuaHost) -> None:
    """401 before any access phase of ours: status, source and times, without a log part."""
    tap = host.plugin("usage-tap", {})
    request = fresh(host)
    request.start_response(401, [(b"content-type", b"application/json")], source="exit")
    request.header_filter(tap)
    request.body_filter(tap, b"{}", True)
    request.log(tap)
    shared = request.shared_get("usage_tap")
    assert (shared["status"], shared["source"], shared["request_id"], shared["ended"]) == (401, "exit", "r1", True)
    assert not {"log", "usage", "upstream_status"} & shared.keys()
    assert (shared["endpoint"], shared["about"]) == ("chat", {"v": 1})


def test_log_alone_makes_the_table(host: LuaHost) -> None:
    """A client that left before any header: only the log phase ran."""
    request = fresh(host)
    request.start_response(499, [], source="error", upstream_status="-")
    request.log(host.plugin("usage-tap", {}))
    shared = request.shared_get("usage_tap")
    assert (shared["status"], shared["upstream_status"], shared["ended"]) == (499, "-", False)


@pytest.mark.parametrize("log_usage", [True, False])
def test_log_records_get_what_was_seen_but_no_text(host: LuaHost, log_usage: bool) -> None:
    """Where asked for: the collector settles what http-log posts as the plugins do. Else it is told only that the
    request was admitted."""
    request = fresh(host)
    decision = {"v": 1, "allow": True, "meter": {"endpoint": "completions", "stream": True}, "log": {"hold": "h"}}
    request.shared_set("token_quota", decision)
    tap = host.plugin("usage-tap", {"log_usage": log_usage})
    assert request.access(tap) is None
    request.start_response(200, [(b"content-type", b"text/event-stream")])
    request.header_filter(tap)
    request.body_filter(tap, b'data: {"choices":[{"index":0,"text":"generated words"}]}\n\n', False)
    request.log(tap)
    seen = request.shared_get("usage_tap")
    assert seen["text"] == "generated words"
    logged = request.serialize_value("usage_tap")
    seen.pop("text")
    assert logged == (seen if log_usage else {"v": 1, "admitted": True})
