std = "ngx_lua"
max_line_length = 130
globals = { "kong" } -- plugins set fields of kong.ctx; that none sets the global itself, tests/unit/lua checks
self = false         -- a handler's phases get it from Kong, used or not

-- The stand-ins for Kong's globals are made here.
files["kong_plugins/local_gateway/lua_host/*.lua"] = { globals = { "ngx", "package" } }

-- Redis gives its scripts these; each is joined with common.lua when it is loaded, so names cross files.
files["kong_plugins/adapters/**/*.lua"] = {
  std = "lua51",
  read_globals = { "KEYS", "ARGV", "redis", "cjson", "cmsgpack", "bit" },
  ignore = { "113", "211" },
}
