"""The host does to plugins what Kong does: phases, exits, values on their way to Python, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kong_plugins.local_gateway.lua_host import (
    Exit,
    LuaHost,
    LuaPluginError,
    LuaRequest,
    RequestState,
)

BEARER = """
local token = (kong.request.get_header("authorization") or ""):match("^[Bb]earer%s+(.+)$")
if token and not kong.request.get_header("apikey") then kong.service.request.set_header("apikey", token) end
"""


def request_of(host: LuaHost, **state: Any) -> LuaRequest:
    values: dict[str, Any] = {"id": "r1", "method": "POST", "path": "/"} | state
    return host.new_request(RequestState(**values))


def run(host: LuaHost, source: str, request: LuaRequest | None = None) -> Exit | None:
    return (request or request_of(host)).access(host.pre_function({"access": [source]}))


def test_pre_function_makes_a_bearer_token_the_key(host: LuaHost) -> None:
    """Kong's bundled pre-function: each source runs, in order; one that returns a function runs that."""
    request = request_of(host, headers=[(b"Authorization", b"Bearer k\xff1")])
    counted = "local n = 0 return function() n = n + 1 kong.service.request.set_header('x-n', n) end"
    plugin = host.pre_function({"access": [BEARER, counted], "log": []})
    assert request.access(plugin) is None
    assert request.header(b"apikey") == b"k\xff1"
    assert request.access(plugin) is None
    assert request.header(b"X_N") == b"2"
    with pytest.raises(LuaPluginError, match="does not compile"):
        host.pre_function({"access": ["local ="]})


def test_exit_unwinds_the_plugin(host: LuaHost) -> None:
    """Nothing after an exit runs, not even inside pcall; tables become JSON, text stays as it is."""
    request = request_of(host)
    answer = run(
        host, "pcall(function() kong.response.exit(403, {a = {1, 2}}) end) kong.ctx.shared.after = true", request
    )
    assert answer == Exit(
        403, ((b"Content-Type", b"application/json; charset=utf-8"), (b"Content-Length", b"11")), b'{"a":[1,2]}'
    )
    assert request.shared_get("after") is None
    assert run(host, "return kong.response.exit(200, 'x\\255', {['X-A'] = {'1', '2'}})") == Exit(
        200, ((b"X-A", b"1"), (b"X-A", b"2"), (b"Content-Length", b"2")), b"x\xff"
    )
    assert run(host, "kong.response.exit(204)") == Exit(204, ((b"Content-Length", b"0"),), None)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        ({"a": None, "b": 1}, {"b": 1}),
        ([1, None, 3], {1: 1, 3: 3}),
        ({}, []),
        (1.0, 1),
        (2**53 + 1, float(2**53)),
        (2**53 - 1, 2**53 - 1),
        (b"\xff", "\udcff"),
        ("\udcffé", "\udcffé"),
        ({"a": [True, False, 1.5, "x", {"b": [[]]}]}, {"a": [True, False, 1.5, "x", {"b": [[]]}]}),
        (None, None),
    ],
)
def test_shared_values_change_as_on_kongs_wire(host: LuaHost, given: Any, returned: Any) -> None:
    """Nested None vanishes, holes become maps with integer keys, {} a list, 1.0 an integer, 2^53+1 a float."""
    request = request_of(host)
    request.shared_set("k", given)
    result = request.shared_get("k")
    assert result == returned
    assert type(result) is type(returned)


def test_values_without_a_wire_form_are_refused(host: LuaHost) -> None:
    """Python objects and Lua functions do not cross."""
    request = request_of(host)
    with pytest.raises(TypeError, match="cannot be handed to Lua"):
        request.shared_set("k", object())
    run(host, "kong.ctx.shared.k = print", request)
    with pytest.raises(TypeError, match="cannot be packed"):
        request.shared_get("k")


def test_kongs_phase_rules_hold(host: LuaHost) -> None:
    """What Kong forbids in a phase fails here, and what is not emulated says its name."""
    plugin = host.pre_function(
        {"log": ["kong.service.request.set_header('a', 'b')"], "access": ["kong.response.get_status()"]}
    )
    with pytest.raises(LuaPluginError, match="set_header cannot be called in log phase"):
        request_of(host).log(plugin)
    with pytest.raises(LuaPluginError, match="get_status cannot be called in access phase"):
        request_of(host).access(plugin)
    with pytest.raises(LuaPluginError, match=r"kong\.cluster is not emulated"):
        run(host, "kong.cluster.get_id()")
    with pytest.raises(LuaPluginError, match=r"kong\.request\.get_id is not emulated"):  # 3.9 has none either
        run(host, "kong.request.get_id()")


def test_requests_do_not_see_each_other(host: LuaHost) -> None:
    """kong.ctx is each request's own, also when their phases interleave."""
    one, two = request_of(host, id="1"), request_of(host, id="2")
    plugin = host.pre_function(
        {"access": ["kong.ctx.plugin.n = kong.request.get_path()"], "log": ["kong.ctx.shared.n = kong.ctx.plugin.n"]}
    )
    one.set_header(b"a", b"1")
    one.access(plugin)
    two.log(plugin)
    one.log(plugin)
    assert (one.shared_get("n"), two.shared_get("n")) == ("/", None)


def test_raw_body_past_the_buffer_needs_a_size(host: LuaHost) -> None:
    """As in Kong: no argument gives nil and a message, 0 reads any size, a smaller size refuses."""
    request = request_of(host, body=b"x" * 9000)
    run(
        host,
        "local s, g = kong.ctx.shared, kong.request.get_raw_body; local b, e = g(); s.none = b == nil; s.why = e "
        "s.all = #g(0); b, e = g(8999); s.small = b == nil; s.big = #g(9000)",
        request,
    )
    got = {key: request.shared_get(key) for key in ("none", "all", "small", "big")}
    assert got == {"none": True, "all": 9000, "small": True, "big": 9000}
    assert "client_body_buffer_size" in request.shared_get("why")


def test_a_new_body_brings_its_length(host: LuaHost) -> None:
    """nginx sets Content-Length for a replaced body."""
    request = request_of(host, headers=[(b"content-length", b"9"), (b"transfer-encoding", b"chunked")], body=b"x" * 9)
    run(host, "kong.service.request.set_raw_body('\\0\\255')", request)
    assert (request.body, request.headers) == (b"\x00\xff", [(b"Content-Length", b"2")])


def test_line_breaks_in_header_values_are_escaped(host: LuaHost) -> None:
    """No plugin can smuggle a header in."""
    request = request_of(host)
    run(host, "kong.service.request.set_header('a', 'x\\r\\nb: y')", request)
    assert request.headers == [(b"a", b"x%0D%0Ab: y")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[1,2.5,-3e2,true,false]}', {"a": [1, 2.5, -300, True, False]}),
        ('{"b":{"c":"\\u00e9\\ud83d\\ude00\\n\\/"}}', {"b": {"c": "é😀\n/"}}),
        (' [ ] ', []),
        ('"x"', "x"),
    ],
)  # fmt: skip
def test_json_decodes_as_cjson_does(host: LuaHost, text: str, value: Any) -> None:
    """Documents, and bare values."""
    request = request_of(host)
    request.shared_set("text", text)
    run(host, "kong.ctx.shared.value = require('cjson.safe').decode(kong.ctx.shared.text)", request)
    assert request.shared_get("value") == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1,]", "{'a':1}", '"\\ud83d"', '"a\n"', "nul", "1 2", "[" * 1100, '{"a" 1}', "-", "[1}"]
)
def test_bad_json_is_nil_and_a_message(host: LuaHost, text: str) -> None:
    """cjson.safe never throws."""
    request = request_of(host)
    request.shared_set("text", text)
    run(
        host,
        "local v, e = require('cjson.safe').decode(kong.ctx.shared.text) kong.ctx.shared.got = {v == nil, type(e)}",
        request,
    )
    assert request.shared_get("got") == [True, "string"]


def test_plugin_errors_carry_the_place(tmp_path: Path) -> None:
    """A plugin that is missing, does not compile, or fails in a phase: its name and line."""
    host = LuaHost(tmp_path)
    with pytest.raises(LuaPluginError, match=r"Lua plugin nope in .* does not load"):
        host.plugin("nope", {})
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "schema.lua").write_text(
        "return { name = 'bad', fields = { { config = { type = 'record', fields = {} } } } }"
    )
    (folder / "handler.lua").write_text(
        "local H = { PRIORITY = 7, VERSION = '1' }\nfunction H:access() error('boom') end\n"
        "function H:body_filter() ngx.arg[1] = nil end\nreturn H"
    )
    plugin = host.plugin("bad", {})
    assert plugin.priority == 7
    with pytest.raises(LuaPluginError, match=r"bad access: .*handler\.lua:2: boom"):
        request_of(host).access(plugin)
    assert request_of(host).body_filter(plugin, b"x", True) == b""
