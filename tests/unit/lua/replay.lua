-- Replays one answer through the handlers at many splits, inside LuaJIT (a crossing into Python for each would take minutes).
-- Called with (calls of the host, the tap's handler, its config); see lua_replays.py.

local calls, tap, conf = ...

local function canonical(value)
  if type(value) ~= "table" then
    return tostring(value)
  end
  local keys = {}
  for key in pairs(value) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  local out = {}
  for _, key in ipairs(keys) do
    if not (type(key) == "string" and key:find("_ms$")) then
      out[#out + 1] = key .. "=" .. canonical(value[key])
    end
  end
  return "{" .. table.concat(out, ",") .. "}"
end

local function request(endpoint, stream, hide, content_type)
  local req = calls.new_request("id", "POST", "/v1/x", "", "http", "h", 80, 1.1, 0, "127.0.0.1", "127.0.0.1", "")
  calls.shared(req).token_quota = {
    v = 1, allow = true, meter = { endpoint = endpoint, stream = stream, hide_usage = hide },
  }
  calls.run(req, "usage-tap", tap, "access", conf)
  req.status, req.source = 200, "service"
  calls.headers_add(req.response_headers, "content-type", content_type)
  calls.run(req, "usage-tap", tap, "header_filter", conf)
  return req
end

local function chunks_at(body, cut)
  if cut == "bytes" then
    local at = 0
    return function()
      at = at + 1
      if at <= #body then
        return body:sub(at, at)
      end
    end
  end
  local parts, at = {}, 0
  if cut >= 0 then
    parts[1], parts[2] = body:sub(1, cut), body:sub(cut + 1)
  else -- every event is cut behind its first -cut bytes
    local from, event = 1, 1
    while event <= #body do
      local stop = select(2, body:find("\n\n", event, true)) or #body
      if event - cut <= stop then
        parts[#parts + 1] = body:sub(from, event - cut - 1)
        from = event - cut
      end
      event = stop + 1
    end
    parts[#parts + 1] = body:sub(from)
  end
  return function()
    at = at + 1
    return parts[at]
  end
end

--- The published table (canonical, without times) and the bytes a client gets.
local function replay(body, cut, eof, endpoint, stream, hide, content_type)
  local req = request(endpoint, stream, hide, content_type)
  local out, same = {}, true
  for chunk in chunks_at(body, cut) do
    local sent = calls.body_filter(req, "usage-tap", tap, conf, chunk, false)
    same = same and sent == chunk
    out[#out + 1] = sent
  end
  if eof then
    out[#out + 1] = calls.body_filter(req, "usage-tap", tap, conf, "", true)
  end
  calls.run(req, "usage-tap", tap, "log", conf)
  return canonical(calls.shared(req).usage_tap), table.concat(out), same
end

--- First cut of `cuts` whose replay differs from what is expected, or nil.
local function first_difference(body, cuts, expected, expected_out, untouched, ...)
  for i = 1, #cuts do
    local published, out, same = replay(body, cuts[i], ...)
    if published ~= expected or out ~= expected_out or (untouched and not same) then
      return cuts[i], published, out
    end
  end
end

return { replay = replay, first_difference = first_difference }
