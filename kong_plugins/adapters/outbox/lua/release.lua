-- Give entries to a consumer that nobody is, so that anybody may have them.
-- KEYS  1 the partition's outbox
-- ARGV  1 group, 2 that consumer, 3 "1": their deliveries count, 4.. positions
-- Returns msgpack, how many were pending.
local args = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ARGV, 4)}
if ARGV[3] ~= '1' then
  args[#args + 1] = 'RETRYCOUNT'
  args[#args + 1] = 0
end
args[#args + 1] = 'JUSTID'
return cmsgpack.pack(#redis.call(unpack(args)))
