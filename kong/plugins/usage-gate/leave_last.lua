-- Kong's worker 0 owns the plugin servers, and takes them with it when it ends. A worker that leaves after it, because a
-- stream of its ended later, would have nobody to settle with (its hold would end uncharged), or would be cut off from the
-- servers in the middle of a request, after a reload. So worker 0 leaves last of those that began with it.

local ngx = ngx
local A_DAY_S = 86400
local LOOK_EVERY_S = 0.2
-- Read by nginx's master at each start and reload, and so the same in the workers that it then starts, in no others.
local GENERATION = "usage-gate:workers of " .. ngx.now() .. ":"


-- Whether a worker that began with this one is still there.
local function others_work(workers, kill)
  for id = 1, ngx.worker.count() - 1 do
    local pid = workers:get(GENERATION .. id)
    if pid and kill(pid, 0) then
      return true
    end
  end
  return false
end


-- In a worker, when it begins.
return function()
  local workers, kill = ngx.shared.kong, require("resty.signal").kill
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
    while others_work(workers, kill) do
      ngx.sleep(LOOK_EVERY_S)
    end
    for other = 1, ngx.worker.count() - 1 do
      workers:delete(GENERATION .. other)
    end
  end

  if id == 0 then
    assert(timer_at(A_DAY_S, stay))
  else
    assert(workers:set(GENERATION .. id, ngx.worker.pid()))
  end
end
