-- Kong's worker 0 owns the plugin servers, and takes them with it when it ends. A worker that leaves after it, because a
-- stream of its ended later, would have nobody to settle with: its hold would end uncharged. So worker 0 leaves last.
-- After a reload the next worker 0's plugin servers take the sockets over, and there is nothing to wait for.

local ngx = ngx
local A_DAY_S = 86400
local LOOK_EVERY_S = 0.2
local NAME = "usage-gate:worker:" -- of nginx's number: the process that has it, in memory that outlives a reload


-- Whether a worker beside us is still there, and no next worker 0.
local function others_work(workers, kill)
  if workers:get(NAME .. 0) ~= ngx.worker.pid() then
    return false
  end
  for id = 1, ngx.worker.count() - 1 do
    local pid = workers:get(NAME .. id)
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
  assert(workers:set(NAME .. id, ngx.worker.pid()))

  -- A timer that is early says that the worker is to end; nginx lets it, when nothing of ours is pending.
  local function stay(ending)
    if not ending then
      return timer_at(A_DAY_S, stay)
    end
    while others_work(workers, kill) do
      ngx.sleep(LOOK_EVERY_S)
    end
  end

  if id == 0 then
    assert(timer_at(A_DAY_S, stay))
  end
end
