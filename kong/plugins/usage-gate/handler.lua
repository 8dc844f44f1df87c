-- usage-gate: reads a request once, and hands it to token-quota in one kong.ctx.shared table.
--
-- A Python plugin pays a round trip for each PDK call, and two of those calls can be turned into another RPC by a client's
-- header or query named `_method`. Here the keys are ours; only values come from the client.
-- Whatever goes wrong is handed over as `refused`: the decision, and the answer, are token-quota's.

local claims_of = require "kong.plugins.usage-gate.claims"
local leave_last = require "kong.plugins.usage-gate.leave_last"
local keep_processes_apart = require "kong.plugins.usage-gate.processes"
local lrucache = require "resty.lrucache"
local request_id = require("kong.observability.tracing.request_id").get -- the PDK of 3.9 has no call for it
local sha256_hex = require("kong.tools.sha256").sha256_hex

local kong = kong
local ngx = ngx
local gmatch, gsub, lower, sub = string.gmatch, string.gsub, string.lower, string.sub
local concat = table.concat
local find = string.find
local ipairs, next, pcall, tonumber, type = ipairs, next, pcall, tonumber, type

local HASH_PREFIX = "token-quota:"
local HASH_DIGITS = 16
-- Where a request goes until usage-tap lets it through. On a route without usage-tap nothing would be settled, so nothing
-- is to be generated: the engine knows no such path, and its log says what is wrong.
local TAP_IS_MISSING = "/usage-tap-is-not-enabled-on-this-route"
local HEADERS_MAX = 1000 -- as many as Kong reads; nginx's header buffers hold no more
local CREDENTIALS_CACHED = 4096 -- a worker's live keys; a miss costs one SHA-256

local hashes = assert(lrucache.new(CREDENTIALS_CACHED))


local UsageGate = {
  PRIORITY = 906,
  VERSION = "0.1.0",
}


local function credential_hash(secret)
  local hash = hashes:get(secret)
  if not hash then
    local hex = sha256_hex(HASH_PREFIX .. secret)
    if not hex then
      return nil
    end
    hash = sub(hex, 1, HASH_DIGITS)
    hashes:set(secret, hash)
  end
  return hash
end


-- What names a credential: the key of key-auth and jwt, the user name of basic-auth and hmac-auth.
local function credential_of(credential)
  if not credential then
    return nil
  end
  local secret = credential.key or credential.username
  return {
    id = credential.id,
    hash = type(secret) == "string" and credential_hash(secret) or nil,
  }
end


local function consumer_of(consumer)
  return consumer and { id = consumer.id, username = consumer.username, custom_id = consumer.custom_id }
end


local function entity_of(entity)
  return entity and { id = entity.id, name = entity.name }
end


-- Body, size, reason for refusing it. A length that is too large is believed without reading a byte; without a length
-- (HTTP/2, chunked) nginx has to take the body in before anybody can know, so client_max_body_size bounds that.
local function body_of(bytes_max)
  local length = tonumber(kong.request.get_header("content-length") or "")
  if length and length > bytes_max then
    return nil, length, "too_large"
  end
  local read, body, problem = pcall(kong.request.get_raw_body, bytes_max)
  if not read then
    kong.log.err("request body not readable: ", body)
    return nil, length or 0, "unreadable"
  end
  if not body then
    if find(problem or "", "too big", 1, true) then
      return nil, length or 0, "too_large"
    end
    kong.log.err("request body not readable: ", problem)
    return nil, length or 0, "unreadable"
  end
  local size = #body
  if size > bytes_max then
    return nil, size, "too_large"
  end
  return size > 0 and body or nil, size, nil
end


-- What a client may name in `Connection`.
local HOP_BY_HOP = { ["keep-alive"] = true, close = true, upgrade = true, te = true, ["http2-settings"] = true }

-- Kong drops every header that a client names in `Connection` from the upstream request. `Connection: content-length`
-- leaves a body without its length, which the engine reads as the next request on Kong's connection: unmetered, or glued
-- to another tenant's. It drops what we set as well. Clearing the header here would not help: Kong reads its own copy.
local function names_foreign_headers(all)
  local connection = all["connection"]
  if type(connection) == "table" then
    connection = concat(connection, ",")
  end
  for name in gmatch(connection or "", "[^,%s]+") do
    if not HOP_BY_HOP[lower(name)] then
      return true
    end
  end
  return false
end


local function named_headers(names)
  local headers = {}
  for _, name in ipairs(names) do
    headers[lower(name)] = kong.request.get_header(name)
  end
  return next(headers) and headers or nil -- an empty table would arrive as a list
end


-- A header's first value, and how often it came where that is more than once.
local function first_of(value)
  if type(value) == "table" then
    return value[1], #value
  end
  return value, nil
end


local function gather(conf)
  local all = kong.request.get_headers(HEADERS_MAX)
  local body, size, refused
  if names_foreign_headers(all) then
    body, size, refused = nil, 0, "connection_header"
  else
    body, size, refused = body_of(conf.max_body_bytes)
  end
  local idempotency_key, idempotency_keys = first_of(all["idempotency-key"])
  return {
    v = 1,
    id = request_id(),
    method = kong.request.get_method(),
    path = kong.request.get_path(),
    type = kong.request.get_header("content-type"),
    encoding = kong.request.get_header("content-encoding"),
    accept = kong.request.get_header("accept"),
    body = body,
    size = size,
    refused = refused,
    consumer = consumer_of(kong.client.get_consumer()),
    credential = credential_of(kong.client.get_credential()),
    ip = kong.client.get_forwarded_ip(),
    service = entity_of(kong.router.get_service()),
    route = entity_of(kong.router.get_route()),
    headers = named_headers(conf.headers),
    claims = claims_of(conf.claims),
    idempotency_key = idempotency_key,
    idempotency_keys = idempotency_keys,
    retry_count = first_of(all["x-stainless-retry-count"]), -- of OpenAI's and Anthropic's SDKs, from 0
  }
end


-- Engines behind CGI-like layers read `x_name` as `x-name`, and Kong lets both through.
local function clear(names)
  for _, name in ipairs(names) do
    kong.service.request.clear_header(name)
    local twin = gsub(name, "-", "_")
    if twin ~= name then
      kong.service.request.clear_header(twin)
    end
  end
end


-- key-auth takes one key and leaves the others, also one in the query.
local function clear_query(names)
  local query = kong.request.get_raw_query()
  if not query or query == "" then
    return
  end
  query = lower(query)
  for _, name in ipairs(names) do
    if find(query, lower(name), 1, true) then
      kong.service.request.clear_query_arg(name)
    end
  end
end


function UsageGate:init_worker()
  keep_processes_apart(kong.configuration.pluginservers)
  leave_last()
end


function UsageGate:access(conf)
  local ok, gathered = pcall(gather, conf)
  if not ok then
    kong.log.err("request not readable: ", gathered)
    gathered = { v = 1, id = request_id() or "", method = "", path = "", size = 0, ip = "", refused = "unreadable" }
  end
  kong.ctx.shared.usage_gate = gathered
  kong.ctx.shared.usage_gate_upstream = ngx.var.upstream_uri
  ngx.var.upstream_uri = TAP_IS_MISSING

  clear(conf.strip_credentials)
  clear(conf.strip_headers)
  clear_query(conf.strip_credentials)
end


return UsageGate
