"""What usage-tap and usage-gate cost in LuaJIT, handler calls only: ``python tests/bench/tap_cost.py``.

Prints microseconds per event and, for the first byte, per call, over a recorded stream of 44 events of about 320 bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "lua"))

from lua_replays import PLUGINS, load

from kong_plugins.local_gateway.lua_host import LuaHost

SOURCE = rb"""
local calls, tap, tap_conf, gate, gate_conf, body = ...
local clock = os.clock
local events = {}
for event in body:gmatch("(.-\n\n)") do events[#events + 1] = event end
local function request(hide)
  local req = calls.new_request("id", "POST", "/v1/chat/completions", "", "http", "h", 80, 1.1, 0, "::1", "::1", body)
  calls.headers_add(req.headers, "authorization", "Bearer k")
  calls.run(req, "usage-gate", gate, "access", gate_conf)
  local meter = { endpoint = "chat", stream = true, hide_usage = hide }
  calls.shared(req).token_quota = { v = 1, allow = true, meter = meter }
  calls.run(req, "usage-tap", tap, "access", tap_conf)
  req.status, req.source = 200, "service"
  calls.headers_add(req.response_headers, "content-type", "text/event-stream")
  calls.run(req, "usage-tap", tap, "header_filter", tap_conf)
  return req
end
return function(hide, rounds)
  local heads, first, rest, worst = 0, 0, 0, 0
  for _ = 1, rounds do
    local t0 = clock()
    local req = request(hide)
    local t1 = clock()
    calls.body_filter(req, "usage-tap", tap, tap_conf, events[1], false)
    local t2 = clock()
    for i = 2, #events do calls.body_filter(req, "usage-tap", tap, tap_conf, events[i], false) end
    local t3 = clock()
    heads, first, rest, worst = heads + t1 - t0, first + t2 - t1, rest + t3 - t2, math.max(worst, t2 - t0)
  end
  return heads / rounds * 1e6, first / rounds * 1e6, rest / rounds / (#events - 1) * 1e6, worst * 1e6
end
"""


def main() -> None:
    host = LuaHost(PLUGINS)
    tap, gate = host.plugin("usage-tap", {}), host.plugin("usage-gate", {})
    body = load("main/21-stream-usage").body
    run = host.lua.globals()[b"loadstring"](SOURCE, b"@tap_cost")(
        host._host, tap.handler, tap.lua_config, gate.handler, gate.lua_config, body
    )
    for hide in (False, True):
        run(hide, 300)
        heads, first, rest, worst = run(hide, 3000)
        print(
            f"usage {'hidden' if hide else 'shown '}: gate + tap before the first byte {heads:.1f} us, first event "
            f"{first:.1f} us, every further event {rest:.2f} us, slowest first byte in all {worst:.0f} us"
        )


if __name__ == "__main__":
    main()
