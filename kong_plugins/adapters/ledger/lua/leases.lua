-- Leases: what nodes hold of counters for requests to come, see domain/leases.py. Keys, of a partition too:
--   {pN}:lease:TENANT/ID  string  msgpack {e when it is over, n turn, b {counter: amount}}
--   {pN}:leases           zset    leases by when they are over
local LATE = 60000000 -- as in layout.py

-- Take amounts by counter off what is held there, where the counter has not gone.
local function give_back(amounts)
  for key, amount in pairs(amounts) do
    if redis.call('EXISTS', key) == 1 then redis.call('HINCRBY', key, 'h', 0 - amount) end
  end
end

local function find_lease(tag, member)
  local packed = member ~= '' and redis.call('GET', tag .. 'lease:' .. member)
  return packed and cmsgpack.unpack(packed)
end

-- Of one that holds nothing only the turn is remembered, for a while: questions may still be on their way.
local function keep_lease(tag, member, lease)
  if next(lease.b) == nil then
    redis.call('SET', tag .. 'lease:' .. member, cmsgpack.pack({e = now + LATE, n = lease.n, b = {}}), 'PXAT', ms(now + LATE))
    redis.call('ZREM', tag .. 'leases', member)
    return
  end
  redis.call('SET', tag .. 'lease:' .. member, cmsgpack.pack(lease), 'PXAT', ms(lease.e + MONTH))
  redis.call('ZADD', tag .. 'leases', lease.e, member)
end

-- End the leases that are over, at most `bound` of them. Returns how many that were.
local function sweep_leases(tag, bound)
  local due = redis.call('ZRANGEBYSCORE', tag .. 'leases', '-inf', now, 'LIMIT', 0, bound)
  for _, member in ipairs(due) do
    local lease = find_lease(tag, member)
    if lease then give_back(lease.b) end
    redis.call('DEL', tag .. 'lease:' .. member)
    redis.call('ZREM', tag .. 'leases', member)
  end
  return #due
end
