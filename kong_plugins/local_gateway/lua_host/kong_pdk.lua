-- The globals `kong` and `ngx` as Kong 3.9.1 gives them to plugins, over one request table at a time. Loaded once per host
-- with (bridge, cjson, headers): bridge.log(level, text), bridge.now() in seconds; the modules cjson.lua and headers.lua.
-- Returns the functions the Python side drives requests with.

local bridge, cjson, headers = ...

local lower, format = string.lower, string.format
local headers_first, headers_clear, headers_add = headers.first, headers.clear, headers.add
local headers_set, headers_table, check_value = headers.set, headers.as_table, headers.check

local current         -- the request being worked on
local phase = "init"  -- the phase of Kong it is in
local plugin_name = ""
local BUFFER_BYTES = 8192
local EXIT = {}       -- what an exit yields, to unwind its plugin

local function emulated(name, members)
  return setmetatable(members, {
    __index = function(_, key)
      error(format("%s.%s is not emulated outside Kong", name, tostring(key)), 2)
    end,
  })
end

-- Phases -------------------------------------------------------------------------------------------------------------

local PHASES_REQUEST = { rewrite = true, access = true, header_filter = true, body_filter = true, log = true }
local PHASES_CHANGE = { rewrite = true, access = true }
local PHASES_RESPONSE_READ = { header_filter = true, body_filter = true, log = true }
local PHASES_RESPONSE_WRITE = { rewrite = true, access = true, header_filter = true }
local PHASES_AUTHENTICATED = { access = true, header_filter = true, body_filter = true, log = true }

local function within(phases, name, work)
  return function(...)
    if not phases[phase] then
      error(format("function %s cannot be called in %s phase", name, phase), 2)
    end
    return work(...)
  end
end

local function module(name, phases, members)
  for key, work in pairs(members) do
    members[key] = within(phases, name .. "." .. key, work)
  end
  return members
end

local function merge(into, from)
  for key, value in pairs(from) do
    into[key] = value
  end
  return into
end

-- kong.* -------------------------------------------------------------------------------------------------------------

local request = module("kong.request", PHASES_REQUEST, {
  get_method = function() return current.method end,
  get_path = function() return current.path end,
  get_raw_path = function() return current.path end,
  get_raw_query = function() return current.query end,
  get_path_with_query = function()
    return current.query ~= "" and current.path .. "?" .. current.query or current.path
  end,
  get_scheme = function() return current.scheme end,
  get_host = function() return current.host end,
  get_port = function() return current.port end,
  get_http_version = function() return current.http_version end,
  get_start_time = function() return math.floor(current.started * 1000) end,
  get_header = function(name)
    if type(name) ~= "string" then
      error("header name must be a string", 2)
    end
    return headers_first(current.headers, name)
  end,
  get_headers = function() return headers_table(current.headers) end,
  get_query_arg = function(name)
    for key, value in current.query:gmatch("([^&=]+)=?([^&]*)") do
      if key == name then
        return value
      end
    end
    return nil
  end,
})
merge(request, module("kong.request", PHASES_CHANGE, {
  get_raw_body = function(file_bytes_max)
    if #current.body <= BUFFER_BYTES then
      return current.body
    elseif not file_bytes_max or file_bytes_max < 0 then
      return nil, "request body did not fit into client body buffer, consider raising 'client_body_buffer_size'"
    elseif file_bytes_max > 0 and #current.body > file_bytes_max then
      return nil, format("request body file too big: %d > %d", #current.body, file_bytes_max)
    end
    return current.body
  end,
}))

local service_request = module("kong.service.request", PHASES_CHANGE, {
  set_header = function(name, value)
    check_value(name, value)
    headers_set(current.headers, name, value)
  end,
  add_header = function(name, value)
    check_value(name, value)
    headers_add(current.headers, name, value)
  end,
  set_headers = function(all)
    for name, value in pairs(all) do
      check_value(name, value)
      headers_set(current.headers, name, value)
    end
  end,
  clear_header = function(name)
    if type(name) ~= "string" then
      error("header must be a string", 2)
    end
    headers_clear(current.headers, name)
  end,
  set_raw_body = function(body)
    if type(body) ~= "string" then
      error("body must be a string", 2)
    end
    current.body = body
    headers_set(current.headers, "Content-Length", #body)
    headers_clear(current.headers, "transfer-encoding")
  end,
  set_raw_query = function(query)
    if type(query) ~= "string" then
      error("query must be a string", 2)
    end
    current.query = query
  end,
  clear_query_arg = function(name)
    local kept = {}
    for argument in current.query:gmatch("[^&]+") do
      if argument:match("^[^=]*") ~= name then
        kept[#kept + 1] = argument
      end
    end
    current.query = table.concat(kept, "&")
  end,
})

local function exit(status, body, extra)
  if type(status) ~= "number" or status < 100 or status > 599 then
    error("code must be a number between 100 and 599", 2)
  elseif body ~= nil and type(body) ~= "string" and type(body) ~= "table" then
    error("body must be a nil, string or table", 2)
  elseif extra ~= nil and type(extra) ~= "table" then
    error("headers must be a nil or table", 2)
  end
  local answer = { status = status, headers = {} }
  for name, value in pairs(extra or {}) do
    check_value(name, value)
    headers_set(answer.headers, name, value)
  end
  if type(body) == "table" then
    local text, problem = cjson.encode(body)
    if not text then
      error("body encoding failed while flushing response: " .. problem, 2)
    end
    body = text
    if not headers_first(answer.headers, "content-type") then
      headers_add(answer.headers, "Content-Type", "application/json; charset=utf-8")
    end
  end
  if not headers_first(answer.headers, "content-length") then
    headers_add(answer.headers, "Content-Length", #(body or ""))
  end
  answer.body = body
  current.exit = answer
  current.source = "exit"
  coroutine.yield(EXIT)
end

local response = module("kong.response", PHASES_RESPONSE_WRITE, {
  exit = exit,
  set_status = function(status) current.status = status end,
  set_header = function(name, value)
    check_value(name, value)
    if lower(name) ~= "transfer-encoding" then
      headers_set(current.response_headers, name, value)
    end
  end,
  add_header = function(name, value)
    check_value(name, value)
    headers_add(current.response_headers, name, value)
  end,
  set_headers = function(all)
    for name, value in pairs(all) do
      check_value(name, value)
      headers_set(current.response_headers, name, value)
    end
  end,
  clear_header = function(name)
    if type(name) ~= "string" then
      error("header name must be a string", 2)
    end
    headers_clear(current.response_headers, name)
  end,
})
merge(response, module("kong.response", PHASES_RESPONSE_READ, {
  get_status = function() return current.status end,
  get_header = function(name) return headers_first(current.response_headers, name) end,
  get_headers = function() return headers_table(current.response_headers) end,
  get_source = function() return current.source end,
}))

local LEVELS = { "debug", "info", "notice", "warn", "err", "crit", "alert", "emerg" }
local log = {}
for _, level in ipairs(LEVELS) do
  log[level] = function(...)
    local parts = {}
    for i = 1, select("#", ...) do
      parts[i] = tostring((select(i, ...)))
    end
    bridge.log(level, "[" .. plugin_name .. "] " .. table.concat(parts))
  end
end

-- For the log plugins that run after: each request has its own.
function log.set_serialize_value(key, value)
  local values = current.serialize_values
  if not values then
    values = {}
    current.serialize_values = values
  end
  values[key] = value
end

local function namespace(_, key)
  if not current then
    return nil
  end
  local space = key == "plugin" and "plugin:" .. plugin_name or key
  local found = current.spaces[space]
  if not found then
    found = {}
    current.spaces[space] = found
  end
  return found
end

kong = emulated("kong", {
  version = "3.9.1",
  configuration = {},
  request = emulated("kong.request", request),
  response = emulated("kong.response", response),
  service = emulated("kong.service", { request = emulated("kong.service.request", service_request) }),
  client = emulated("kong.client", merge({
    get_ip = function() return current.client_ip end,
    get_forwarded_ip = function() return current.forwarded_ip end,
  }, module("kong.client", PHASES_AUTHENTICATED, {
    get_consumer = function() return current.consumer end,
    get_credential = function() return current.credential end,
  }))),
  router = emulated("kong.router", module("kong.router", PHASES_REQUEST, {
    get_route = function() return current.route end,
    get_service = function() return current.service end,
  })),
  ctx = setmetatable({}, { __index = namespace }),
  log = emulated("kong.log", log),
})

-- ngx.* --------------------------------------------------------------------------------------------------------------

ngx = emulated("ngx", {
  null = cjson.null,
  arg = {},
  ctx = setmetatable({}, {
    __index = function(_, key) return current.ngx_ctx[key] end,
    __newindex = function(_, key, value) current.ngx_ctx[key] = value end,
  }),
  var = setmetatable({}, {
    __index = function(_, key) return current.var[key] end,
    __newindex = function(_, key, value) current.var[key] = value end,
  }),
  shared = {}, -- with other workers, and there are none
  req = emulated("ngx.req", { start_time = function() return current.started end }),
  now = function() return bridge.now() end,
  time = function() return math.floor(bridge.now()) end,
  get_phase = function() return phase end,
})

-- What the Python side drives ------------------------------------------------------------------------------------------

local host = {}

function host.request_id()
  return current.id
end

function host.buffer_bytes(bytes)
  BUFFER_BYTES = bytes
end

function host.new_request(id, method, path, query, scheme, address, port, http_version, started, client_ip, forwarded_ip,
                          body, service, route)
  return {
    id = id, method = method, path = path, query = query, scheme = scheme, host = address, port = port,
    http_version = http_version, started = started, client_ip = client_ip, forwarded_ip = forwarded_ip, body = body,
    service = service, route = route, headers = {}, response_headers = {}, spaces = {}, ngx_ctx = {}, var = {},
    source = "error", status = 0,
  }
end

host.headers_add, host.headers_set, host.headers_clear, host.headers_first =
  headers_add, headers_set, headers_clear, headers_first

function host.serialize_value(req, key)
  return req.serialize_values and req.serialize_values[key]
end


function host.shared(req)
  local shared = req.spaces.shared
  if not shared then
    shared = {}
    req.spaces.shared = shared
  end
  return shared
end

--- Runs one phase of a plugin. Returns nil when it ended, "exit" when it answered the client itself; errors go to Python.
function host.run(req, name, handler, phase_name, conf)
  local work = handler[phase_name]
  if not work then
    return nil
  end
  current, phase, plugin_name = req, phase_name, name
  local thread = coroutine.create(work)
  local ok, yielded = coroutine.resume(thread, handler, conf)
  phase = "none"
  if not ok then
    if phase_name == "access" then
      req.source = "error"
    end
    error(tostring(yielded), 0)
  elseif yielded == EXIT then
    return "exit"
  end
  return nil
end

--- One body_filter call: the bytes that go on, or nil for none.
function host.body_filter(req, name, handler, conf, chunk, eof)
  current, phase, plugin_name = req, "body_filter", name
  local arg = ngx.arg
  arg[1], arg[2] = chunk, eof
  if handler.body_filter then
    handler:body_filter(conf)
  end
  phase = "none"
  return arg[1]
end

--- Kong's bundled pre-function: a list of Lua sources per phase; one that returns a function is run through that.
function host.pre_function(sources)
  local handler = {}
  for phase_name, list in pairs(sources) do
    local steps = {}
    for i, source in ipairs(list) do
      local chunk = assert(loadstring(source, "=pre-function." .. phase_name .. "[" .. i .. "]"))
      steps[i] = function()
        steps[i] = chunk
        local made = chunk()
        if type(made) == "function" then
          steps[i] = made
          made()
        end
      end
    end
    handler[phase_name] = function()
      for i = 1, #steps do
        steps[i]()
      end
    end
  end
  return handler
end

return host
