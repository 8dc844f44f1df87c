-- Every live counter of a tenant.
-- KEYS  1 the tenant's live counters
-- ARGV  1 tag
-- Returns msgpack {"seen", now, {line key, window in words, mode, limit, committed, held, reset} for each}.
sweep(ARGV[1], 'open', 64)
local found = {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')) do
  local v = redis.call('HMGET', key, 'k', 'w', 'm', 'l', 'q', 'a', 'b')
  if v[1] then
    local limit = tonumber(v[4])
    local n = read(key, v[5], tonumber(v[6]), tonumber(v[7]), limit)
    found[#found + 1] = {v[1], v[2], v[3], limit, n.c, n.h, reset_at(n, limit, 0)}
  end
end
return pack('seen', found)
