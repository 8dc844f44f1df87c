-- Whom a request is from that no decision of token-quota speaks of: refused by somebody, or on a route without budgets.

local Scanner = require "kong.plugins.usage-tap.scanner"
local decode = require("cjson.safe").decode

local kong = kong
local type = type

local MODEL = { members = { model = { field = "model", cap = 258 } } }


-- What is worth keeping of the gate's table while an answer streams: not the body.
local function kept(gate)
  if type(gate) ~= "table" then
    return nil
  end
  local body, model = gate.body, nil
  if type(body) == "string" then
    local scanner = Scanner.new(MODEL)
    scanner:feed(body, 1, #body, 0)
    model = decode(scanner.doc.model or "")
  end
  return {
    credential = gate.credential and gate.credential.hash,
    headers = gate.headers,
    claims = gate.claims,
    model = type(model) == "string" and model or nil,
  }
end


local function entity(of)
  return of and { id = of.id, name = of.name }
end


-- For billing-events. Works in the log phase of any request, also of one that the gate never saw.
local function about(gate)
  gate = gate or {}
  local consumer = kong.client.get_consumer()
  return {
    v = 1, -- so that it is never an empty table, which would arrive as a list
    consumer = consumer and { id = consumer.id, username = consumer.username, custom_id = consumer.custom_id },
    credential = gate.credential,
    service = entity(kong.router.get_service()),
    route = entity(kong.router.get_route()),
    headers = gate.headers,
    claims = gate.claims,
    model = gate.model,
  }
end


return { kept = kept, about = about }
