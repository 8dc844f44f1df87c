-- Dead letters of a partition, oldest first.
-- KEYS  1 its dead letters
-- ARGV  1 the position they come after, 2 how many at most
-- Returns msgpack {{position, {fields and values}} for each}.
return cmsgpack.pack(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]))
