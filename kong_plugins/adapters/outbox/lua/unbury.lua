-- Put dead letters back at the end of the outbox, or drop them. Back there they go to every sink again, and a sink that
-- has them knows them by their id.
-- KEYS  1 the partition's outbox, 2 its dead letters, 3 how many of them each sink has
-- ARGV  1 "retry" or "drop", 2.. positions
-- Returns msgpack, how many there were.
local done = 0
for i = 2, #ARGV do
  local found = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])
  if found[1] then
    local fields = found[1][2] -- sink, position and reason first, then the entry's own
    if ARGV[1] == 'retry' then redis.call('XADD', KEYS[1], '*', unpack(fields, 7)) end
    redis.call('XDEL', KEYS[2], ARGV[i])
    if redis.call('HINCRBY', KEYS[3], fields[2], -1) <= 0 then redis.call('HDEL', KEYS[3], fields[2]) end
    done = done + 1
  end
end
return cmsgpack.pack(done)
