-- Take one of an engine's places, or learn why not. Of all tenants, so these keys are in no tenant's partition: they share
-- the hash tag of the engine, "{engine/KEY}:".
-- KEYS  1 zset of places, TENANT/ID by until when, 2 zset of tenants by places held per weight, 3 hash of tenants with
--         msgpack of {places held, weight}
-- ARGV  1 encoded tenant, 2 member (encoded tenant/hold id), 3 places, 4 places kept for who holds less, 5 weight,
--       6 how long one is taken
-- Returns msgpack {"in", "full" or "over", now, {taken by all, by this tenant}}, an admitted one counted.
local tenant, member = ARGV[1], ARGV[2]
local places, kept, weight, lease = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do give_back(KEYS, gone) end

local again = redis.call('ZSCORE', KEYS[1], member)
local taken, mine = redis.call('ZCARD', KEYS[1]), held(KEYS, tenant)
if not again then
  local most = 0
  local ranked = redis.call('ZREVRANGE', KEYS[2], 0, 1, 'WITHSCORES')
  for i = #ranked - 1, 1, -2 do
    if ranked[i] ~= tenant then most = tonumber(ranked[i + 1]) end
  end
  if taken >= places then return pack('full', {taken, mine}) end
  if taken >= places - kept and mine > 0 and mine / weight >= most then return pack('over', {taken, mine}) end
  taken, mine = taken + 1, mine + 1
  hold(KEYS, tenant, mine, weight)
end
redis.call('ZADD', KEYS[1], now + lease, member)
for i = 1, 3 do redis.call('PEXPIREAT', KEYS[i], ms(now + lease)) end
return pack('in', {taken, mine})
