-- Take a sink's group away.
-- KEYS  1 the partition's outbox
-- ARGV  1 group
-- Returns msgpack, 1 where there was one.
local done = redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
return cmsgpack.pack(type(done) == 'number' and done or 0)
