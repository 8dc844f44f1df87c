-- Events of a partition after a position, oldest first. Trimming is for whoever has stored them.
-- KEYS  1 the outbox
-- ARGV  1 position, 2 count
-- Returns msgpack {"seen", now, {position, {fields and values}} for each}.
return pack('seen', redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]))
