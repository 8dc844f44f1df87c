-- Kong 3.9 keeps the process of a plugin server that it started in its own configuration, which the Admin API encodes as
-- JSON for `GET /`. A process is no JSON: the worker that started one answers 500 (Kong/kong#14111), and decK, which asks
-- there for Kong's version first, does nothing at all.
-- So a server's `proc` goes into a table of its own, where Kong's code finds it and nothing else looks.

local setmetatable = setmetatable
local ipairs, rawset = ipairs, rawset


-- Call it before Kong starts them. ``servers``: kong.configuration.pluginservers.
return function(servers)
  for _, server in ipairs(servers or {}) do
    local process
    setmetatable(server, {
      __index = function(_, key)
        return key == "proc" and process or nil
      end,
      __newindex = function(self, key, value)
        if key == "proc" then
          process = value
        else
          rawset(self, key, value)
        end
      end,
    })
  end
end
