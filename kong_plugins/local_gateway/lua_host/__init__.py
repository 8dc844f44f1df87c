"""Runs Kong Lua plugins outside Kong: LuaJIT through lupa, with the parts of Kong's PDK and ``ngx`` they use.

The gateway drives one request through the phases; every call is synchronous and takes microseconds, so one host serves
all requests of one event loop (a host is not thread-safe). Bytes stay bytes; header names and values are ``bytes``.

    host = LuaHost(Path("kong/plugins"), log=lambda level, text: ...)
    gate = host.plugin("usage-gate", {})                # schema defaults applied; ConfigError names the field
    tap = host.plugin("usage-tap", {"guard": True})
    bearer = host.pre_function({"access": ["kong.service.request.set_header(...)"]})   # Kong's bundled pre-function

    request = host.new_request(RequestState(id=..., method="POST", path="/v1/models", headers=[], body=b""))
    request.access(bearer)                              # Exit | None; LuaPluginError: Kong would answer its own 500
    request.authenticate(consumer, credential)          # what key-auth does; mappings as Kong's entities
    request.access(gate)
    request.shared_get("usage_gate")                    # as the MessagePack plugin server protocol would carry it
    request.shared_set("token_quota", {...})            # what a Python plugin set; None deletes
    request.access(tap)
    request.headers, request.body, request.query        # what goes upstream now
    request.start_response(200, headers, upstream_status="200", source="service")
    request.header_filter(tap)
    request.response_status, request.response_headers   # what goes to the client now
    request.body_filter(tap, chunk, eof)                # bytes to send now (b"" : nothing)
    request.log(tap)                                    # before any Python plugin's log phase reads shared_get()

A plugin that calls a PDK function which is not emulated fails with that function's name; a PDK function called in a
phase Kong forbids fails as in Kong.
"""

from kong_plugins.local_gateway.lua_host.host import (
    ConfigError,
    Exit,
    LuaHost,
    LuaPlugin,
    LuaPluginError,
    LuaRequest,
    RequestState,
)

__all__ = [
    "ConfigError",
    "Exit",
    "LuaHost",
    "LuaPlugin",
    "LuaPluginError",
    "LuaRequest",
    "RequestState",
]
