-- The modules plugins may require, of Kong's and OpenResty's own; and the plugins' modules themselves.
-- Loaded with (bridge, cjson, request_id): bridge.sha256(bytes) as hex digits, bridge.base64url(text): its bytes, or nil;
-- bridge.read(name): a plugin module's source and path, or nil; request_id() of the request being worked on.

local bridge, cjson, request_id = ...

package.preload["cjson.safe"] = function() return cjson end
package.preload["kong.observability.tracing.request_id"] = function()
  return { get = request_id }
end
package.preload["kong.tools.sha256"] = function()
  return { sha256_hex = function(text) return bridge.sha256(text) end }
end
package.preload["ngx.base64"] = function()
  return { decode_base64url = function(text) return bridge.base64url(text) end }
end
package.preload["resty.lrucache"] = function()
  -- Bounded like the real one, forgetting everything when full: right for a cache, and three lines.
  return {
    new = function(size)
      local values, count = {}, 0
      return {
        get = function(_, key) return values[key] end,
        set = function(_, key, value)
          if values[key] == nil then
            if count >= size then
              values, count = {}, 0
            end
            count = count + 1
          end
          values[key] = value
        end,
      }
    end,
  }
end
package.preload["kong.db.schema.typedefs"] = function()
  return setmetatable({
    no_consumer = { type = "record", fields = {} },
    protocols_http = { type = "set", elements = { type = "string" }, default = { "grpc", "grpcs", "http", "https" } },
    header_name = { type = "string" },
  }, { __index = function(_, name) error("typedefs." .. name .. " is not emulated outside Kong", 2) end })
end

table.insert(package.loaders, 2, function(name)
  local source, where = bridge.read(name)
  if source then
    return assert(loadstring(source, "@" .. where))
  end
  return "\n\tno plugin module '" .. name .. "'"
end)
