-- usage-tap: lets a request through only with a decision, applies it, and reads the usage as the answer passes.
--
-- Where the decision asks for it (`meter.keep`), the answer's bytes are kept as the client gets them, so that a retry of the
-- same request can be answered with them.
--
-- What it knows is published in kong.ctx.shared.usage_tap at once and changed in place: on a client's abort Kong runs the
-- log phase straight away, and body_filter never sees the end.

local Meter = require "kong.plugins.usage-tap.meter"
local Scanner = require "kong.plugins.usage-tap.scanner"
local Sse = require "kong.plugins.usage-tap.sse"
local about = require "kong.plugins.usage-tap.about"
local shapes = require "kong.plugins.usage-tap.shapes"
local request_id = require("kong.observability.tracing.request_id").get -- the PDK of 3.9 has no call for it

local kong = kong
local ngx = ngx
local now = ngx.now
local find, lower = string.find, string.lower
local floor = math.floor
local concat = table.concat
local error, pairs, pcall, type = error, pairs, pcall, type

local RETRY_AFTER_S = "1" -- a plugin server that died is back within a second: Kong respawns it that often

local GUARD_BODY = '{"error":{"message":"This request cannot be metered right now, so it was not served: token-quota made '
  .. 'no decision about it. Operators: see the log lines of the token-quota plugin server and of Kong, and check that '
  .. 'token-quota is enabled on this route.","type":"server_error","param":null,"code":"quota_decision_missing"}}'

local GUARD_HEADERS = {
  ["Content-Type"] = "application/json",
  ["Cache-Control"] = "no-store",
  ["Retry-After"] = RETRY_AFTER_S,
}

-- Endpoints whose streams carry usage only where it was asked for.
local HIDEABLE = { chat = true, completions = true }


local UsageTap = {
  PRIORITY = 904,
  VERSION = "0.1.0",
}


local function epoch_ms()
  return floor(now() * 1000)
end


-- The published table; made by whichever phase comes first (a refused request has no access phase of ours).
local function published()
  local shared = kong.ctx.shared
  local tap = shared.usage_tap
  if not tap then
    tap = {
      v = 1,
      request_id = request_id(),
      started_ms = floor(ngx.req.start_time() * 1000),
      text_bytes = 0,
      ended = false,
    }
    shared.usage_tap = tap
  end
  return tap
end


local function apply(decision, state, tap)
  local upstream = decision.upstream
  if upstream ~= nil then
    for name, value in pairs(upstream) do
      kong.service.request.set_header(name, value)
    end
  end
  local meter = decision.meter
  if meter ~= nil then
    if not shapes.BODY[meter.endpoint] then
      error("unknown endpoint in the decision")
    end
    state.endpoint = meter.endpoint
    state.choices_per_prompt = meter.choices_per_prompt
    state.keep = meter.keep
    state.hide = meter.hide_usage == true and meter.stream == true and HIDEABLE[meter.endpoint] == true
    tap.endpoint, tap.stream = meter.endpoint, meter.stream == true
  end
  local body = decision.body
  if body ~= nil then
    kong.service.request.set_raw_body(body)
    decision.body = nil -- Kong keeps its own copy; a stream may last for minutes
  end
  state.response = decision.response
  tap.log = decision.log
end


-- Only where the operator took the guard off: a route without token-quota, whose bill still wants usage.
local function infer(state, tap, gate)
  state.endpoint = shapes.endpoint_of(kong.request.get_path())
  tap.endpoint = state.endpoint
  state.gate = state.endpoint and about.kept(gate)
end


-- What billing-events is to know of a request that token-quota did not let through.
local function tell_about(state, tap)
  local shared = kong.ctx.shared
  local decision = shared.token_quota
  if type(decision) == "table" and decision.allow == true then
    return
  end
  tap.endpoint = tap.endpoint or shapes.endpoint_of(kong.request.get_path())
  if tap.endpoint then
    tap.about = about.about(state.gate or about.kept(shared.usage_gate))
  end
end


function UsageTap:access(conf)
  local shared = kong.ctx.shared
  local tap = published()
  local state = kong.ctx.plugin
  local gate = shared.usage_gate
  shared.usage_gate = nil -- frees the body

  local decision = shared.token_quota
  local made = type(decision) == "table" and decision.allow == true
  local ok, problem = true, nil
  if made then
    ok, problem = pcall(apply, decision, state, tap)
  elseif not conf.guard then
    infer(state, tap, gate)
  end
  if not ok then
    kong.log.err("decision not applicable: ", problem)
  end
  if not ok or (conf.guard and not made) then
    if ok then
      kong.log.err("no decision of token-quota for this request: is its plugin server running, is it enabled on this route?")
    end
    return kong.response.exit(503, GUARD_BODY, GUARD_HEADERS)
  end
  if shared.usage_gate_upstream then
    ngx.var.upstream_uri = shared.usage_gate_upstream -- usage-gate had it point nowhere
  end
  if state.endpoint then
    kong.service.request.set_header("Accept-Encoding", "identity") -- a compressed answer cannot be read as it passes
  end
end


local function reader_for(conf, state, tap, content_type)
  local hide, endpoint = state.hide, state.endpoint
  local meter = Meter.new(tap, endpoint, conf.text_bytes_max, state.choices_per_prompt)
  state.meter = meter
  if find(content_type, "text/event-stream", 1, true) then
    local tree = shapes.STREAM[endpoint]
    if tree then
      tap.stream = true
      state.sse = Sse.new(Scanner.new(tree, hide), function(doc)
        return meter:event(doc)
      end, hide, conf.event_bytes_max)
      return true
    end
  elseif find(content_type, "json", 1, true) then
    tap.stream = false
    state.scanner = Scanner.new(shapes.BODY[endpoint])
    state.seen = 0
    return true
  end
  return false
end


local function head(conf)
  local state = kong.ctx.plugin
  local tap = published()
  tap.status = kong.response.get_status()
  tap.source = kong.response.get_source()
  if state.response then
    for name, value in pairs(state.response) do
      kong.response.set_header(name, value)
    end
  end
  if not state.endpoint or tap.status ~= 200 or tap.source ~= "service" then
    return
  end
  local encoding = kong.response.get_header("Content-Encoding")
  if encoding and lower(encoding) ~= "identity" then
    kong.log.warn("the upstream answers with Content-Encoding in spite of Accept-Encoding: identity; usage unread")
    return
  end
  state.reading = reader_for(conf, state, tap, lower(kong.response.get_header("Content-Type") or ""))
  if state.reading and state.sse and state.hide then
    kong.response.clear_header("Content-Length")
  end
  if state.reading and state.keep then
    state.kept, state.kept_bytes = {}, 0
  end
end


function UsageTap:header_filter(conf)
  local ok, problem = pcall(head, conf)
  if not ok then
    kong.log.err("answer's head not readable: ", problem)
  end
end


-- The bytes that go on in the chunk's place.
local function read(state, chunk, eof)
  local sse = state.sse
  if sse then
    local out = chunk
    if chunk ~= "" then
      out = sse:feed(chunk)
    end
    if eof then
      local rest = sse:finish()
      if rest ~= "" then
        out = out .. rest
      end
    end
    return out
  end
  local scanner = state.scanner
  if not scanner:complete() then
    scanner:feed(chunk, 1, #chunk, state.seen)
    state.seen = state.seen + #chunk
    if scanner:complete() then
      state.meter:body(scanner.doc)
    end
  end
  return chunk
end


-- No copy: a chunk is one string, whoever else has it.
local function keep(state, chunk)
  local bytes = state.kept_bytes + #chunk
  if bytes > state.keep then
    state.kept, state.too_large = nil, true -- and what was kept is free again
    return
  end
  state.kept_bytes = bytes
  state.kept[#state.kept + 1] = chunk
end


function UsageTap:body_filter()
  local state = kong.ctx.plugin
  local tap = kong.ctx.shared.usage_tap
  if not tap then
    return
  end
  local arg = ngx.arg
  local chunk, eof = arg[1] or "", arg[2]

  local out = chunk
  if state.reading then
    local ok, result = pcall(read, state, chunk, eof)
    if ok then
      out = result
    else
      -- From here on everything passes as it comes, usage too: an answer matters more than a number the client could
      -- have asked for. What was known so far is no longer the newest.
      state.reading = false
      kong.log.err("answer not readable, usage unknown from here on: ", result)
      if tap.evidence == "continuous" then
        tap.evidence = nil
      end
      out = state.sse and state.sse:rescue(chunk) or chunk
    end
    if out ~= chunk then
      arg[1] = out
    end
  end

  if out ~= "" then
    local at = epoch_ms()
    tap.first_ms = tap.first_ms or at
    tap.last_ms = at
    if state.kept then
      keep(state, out)
    end
  end
  if eof then
    tap.ended = true
  end
end


-- In a table of its own, which only token-quota fetches, and only when `answer` says that it is there.
local function publish_answer(state, tap)
  if state.too_large then
    tap.answer = "too_large"
  elseif state.kept then
    kong.ctx.shared.usage_tap_answer = {
      v = 1,
      status = tap.status,
      type = kong.response.get_header("Content-Type"),
      body = concat(state.kept),
    }
    tap.answer = "kept"
  end
  state.kept = nil
end


local function finish()
  local tap = published()
  tap.status = kong.response.get_status()
  tap.source = kong.response.get_source()
  tap.upstream_status = ngx.var.upstream_status
  local waited = ngx.ctx.KONG_WAITING_TIME
  tap.proxy_ms = waited and floor(waited) or nil
  local state = kong.ctx.plugin
  local meter, scanner = state.meter, state.scanner
  if scanner and not scanner:complete() then
    scanner:cut()
    meter:cut_body(scanner.doc)
  end
  if meter and tap.text_bytes > 0 then
    tap.text = meter:uncovered_text()
  end
  if tap.ended and tap.status == 200 then -- of an answer cut short a retry is to get the whole
    publish_answer(state, tap)
  end
  if not tap.log then
    tell_about(state, tap)
  end
end


-- For http-log and the like, which run after. Generated text is no log's business. An admitted request is marked as one
-- in any case: the collector must not book it anew, at zero, perhaps under its consumer where its tenant is another.
local function publish_to_logs(conf)
  if not conf.log_usage then
    if published().log then
      kong.log.set_serialize_value("usage_tap", { v = 1, admitted = true })
    end
    return
  end
  local record = {}
  for key, value in pairs(published()) do
    if key ~= "text" then
      record[key] = value
    end
  end
  kong.log.set_serialize_value("usage_tap", record)
end


function UsageTap:log(conf)
  local ok, problem = pcall(finish)
  if not ok then
    kong.log.err("outcome not readable: ", problem)
  end
  publish_to_logs(conf)
end


return UsageTap
