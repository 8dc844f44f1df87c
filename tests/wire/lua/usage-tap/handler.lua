-- The small Lua plugin the recordings of 07 were made with, by its description there.
local Tap = { PRIORITY = 800, VERSION = "0" }

function Tap:access(conf)
  local decision = kong.ctx.shared.token_quota
  if decision == nil then
    if conf.guard then
      return kong.response.exit(503, '{"error":{"type":"quota_unavailable","message":"quota service unavailable"}}',
        { ["Content-Type"] = "application/json; charset=utf-8", ["X-Guard"] = "missing token_quota" })
    end
  elseif type(decision) == "table" then
    if type(decision.body) == "string" then
      kong.service.request.set_raw_body(decision.body)
    end
    for name, value in pairs(decision.upstream_headers or {}) do
      kong.service.request.set_header(name, value)
    end
  end
end

function Tap:header_filter()
  local decision = kong.ctx.shared.token_quota
  if type(decision) == "table" then
    for name, value in pairs(decision.response_headers or {}) do
      kong.response.set_header(name, value)
    end
  end
  kong.response.set_header("X-Tap", "hf status=" .. kong.response.get_status() .. " source="
    .. kong.response.get_source() .. " tq=" .. type(decision))
end

function Tap:body_filter()
  local shared = kong.ctx.shared
  shared.tap_chunks = (shared.tap_chunks or 0) + 1
  shared.tap_bytes = (shared.tap_bytes or 0) + #(ngx.arg[1] or "")
end

return Tap
