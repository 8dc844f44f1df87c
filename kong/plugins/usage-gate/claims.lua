-- Named claims of the token that Kong's jwt plugin has verified, for a billing event's attributes.
--
-- jwt leaves the token in kong.ctx.shared.authenticated_jwt_token once signature and claims are checked, and nothing there
-- for an anonymous consumer.

local decode = require("cjson.safe").decode
local decode_base64url = require("ngx.base64").decode_base64url

local kong = kong
local format, match, sub = string.format, string.match, string.sub
local ipairs, next, type = ipairs, next, type

local VALUE_BYTES_MAX = 256
local FORMATS = { boolean = "%s", number = "%.14g", string = "%s" } -- a list or an object is no attribute


-- By name, as text; nil where there are none.
return function(names)
  local token = kong.ctx.shared.authenticated_jwt_token
  if not names[1] or type(token) ~= "string" then
    return nil
  end
  local payload = match(token, "^[^.]*%.([^.]*)%.")
  local text = payload and decode_base64url(payload)
  local claims = text and decode(text)
  if type(claims) ~= "table" then
    return nil
  end
  local found = {}
  for _, name in ipairs(names) do
    local value = claims[name]
    local as = FORMATS[type(value)]
    found[name] = as and sub(format(as, value), 1, VALUE_BYTES_MAX) or nil
  end
  return next(found) and found or nil -- an empty table would arrive as a list
end
