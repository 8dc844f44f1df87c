-- An engine's places; keys are as for enter.lua. Put in front of the scripts that change them.
local function held(keys, tenant)
  local packed = redis.call('HGET', keys[3], tenant)
  if not packed then return 0, 1 end
  local kept = cmsgpack.unpack(packed)
  return kept[1], kept[2]
end

local function hold(keys, tenant, count, weight)
  if count > 0 then
    redis.call('HSET', keys[3], tenant, cmsgpack.pack({count, weight}))
    redis.call('ZADD', keys[2], count / weight, tenant)
  else
    redis.call('HDEL', keys[3], tenant)
    redis.call('ZREM', keys[2], tenant)
  end
end

local function give_back(keys, member)
  if redis.call('ZREM', keys[1], member) == 0 then return false end
  local tenant = string.match(member, '^[^/]*')
  local count, weight = held(keys, tenant)
  hold(keys, tenant, count - 1, weight)
  return true
end
