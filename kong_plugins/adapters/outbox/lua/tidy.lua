-- Remove consumers of ended processes. One that still has entries stays, for they would go with it.
-- KEYS  1 the partition's outbox
-- ARGV  1 group, 2 milliseconds of silence, 3 the consumer that asks, 4 "1": it ends, and goes too
-- Returns msgpack, how many were removed.
local removed = 0
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return cmsgpack.pack(0) end
for _, info in ipairs(consumers) do
  local ends
  if info[2] == ARGV[3] then ends = ARGV[4] == '1' else ends = info[6] >= tonumber(ARGV[2]) end
  if info[4] == 0 and ends then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], info[2])
    removed = removed + 1
  end
end
return cmsgpack.pack(removed)
