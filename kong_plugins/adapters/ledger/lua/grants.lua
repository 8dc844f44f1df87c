-- The latest grants of a tenant, newest first.
-- KEYS  1 the tenant's stream of grants
-- ARGV  1 count
-- Returns msgpack {"seen", now, {fields and values of a grant} for each}.
local found = {}
for i, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])) do found[i] = entry[2] end
return pack('seen', found)
