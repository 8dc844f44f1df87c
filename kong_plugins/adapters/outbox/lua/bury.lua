-- Move entries that a sink will never take to the dead letters. An entry that is not pending any more was acknowledged
-- or buried by somebody else, and stays as it is.
-- KEYS  1 the partition's outbox, 2 its dead letters, 3 how many of them each sink has
-- ARGV  1 group, 2.. position and reason of each
-- Returns msgpack, how many were buried.
local group, buried = ARGV[1], 0
for i = 2, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], group, ARGV[i]) == 1 then
    local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
    if found[1] then
      redis.call('XADD', KEYS[2], '*', 'sink', group, 'position', ARGV[i], 'reason', ARGV[i + 1], unpack(found[1][2]))
      redis.call('HINCRBY', KEYS[3], group, 1)
      buried = buried + 1
    end
  end
end
return cmsgpack.pack(buried)
