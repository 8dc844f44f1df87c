-- Kong's worker 0 owns the plugin servers, and takes them with it when it ends. So it leaves last:
-- - after the workers that began with it: one that ends a stream later has nobody to settle with, its hold ends uncharged;
-- - after a reload, when the next plugin servers have the sockets: until then the next workers ask the old ones, and
--   without them Kong answers 500.

local ngx = ngx
local floor = math.floor
local ipairs = ipairs

local A_DAY_S = 86400
local LOOK_EVERY_S = 0.2
local TAKEN_OVER_WITHIN_S = 60 -- by servers that start in a second or two; some may never
local LATEST = "usage-gate:latest generation"

-- Read by nginx's master at each start and reload, and so the same in the workers that it starts then, in no others.
local BEGAN = ngx.now()
local WORKER = "usage-gate:worker of " .. BEGAN .. ":"
local shared = ngx.shared.kong -- nil in the local gateway, which has no workers
if shared then
  shared:set(LATEST, BEGAN)
end


-- Whether a worker that began with this one is still there.
local function others_work(kill)
  for id = 1, ngx.worker.count() - 1 do
    local pid = shared:get(WORKER .. id)
    if pid and kill(pid, 0) then
      return true
    end
  end
  return false
end


-- Whether the plugin servers of a generation that began then have the sockets.
local function serves(began, lfs)
  for _, server in ipairs(kong.configuration.pluginservers or {}) do
    local made = lfs.attributes(server.socket, "change")
    if server.start_command and (not made or made < floor(began)) then
      return false
    end
  end
  return true
end


-- In a worker, when it begins.
return function()
  local kill, lfs = require("resty.signal").kill, require "lfs"
  local timer_at = _G.native_timer_at or ngx.timer.at -- Kong's own timers end at a worker's first sign of ending
  local id = ngx.worker.id()
  if not id then -- the privileged agent has no number, and no requests
    return
  end

  -- A timer that is early says that the worker is to end; nginx lets it, when nothing of ours is pending.
  local function stay(ending)
    if not ending then
      return timer_at(A_DAY_S, stay)
    end
    while others_work(kill) do
      ngx.sleep(LOOK_EVERY_S)
    end
    for other = 1, ngx.worker.count() - 1 do
      shared:delete(WORKER .. other)
    end
    for _ = 1, TAKEN_OVER_WITHIN_S / LOOK_EVERY_S do
      local latest = shared:get(LATEST) or BEGAN
      if latest == BEGAN or serves(latest, lfs) then
        return
      end
      ngx.sleep(LOOK_EVERY_S)
    end
  end

  if id == 0 then
    assert(timer_at(A_DAY_S, stay))
  else
    assert(shared:set(WORKER .. id, ngx.worker.pid()))
  end
end
