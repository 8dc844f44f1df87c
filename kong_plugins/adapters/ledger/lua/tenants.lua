-- The tenants of a partition that have a live counter.
-- KEYS  1 the partition's tenants
-- Returns msgpack {"seen", now, tenants}.
return pack('seen', redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf'))
