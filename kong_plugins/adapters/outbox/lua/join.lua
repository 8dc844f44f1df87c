-- Give sinks their groups, at the first entry there is; one that has a group keeps its position.
-- KEYS  1 the partition's outbox
-- ARGV  groups
-- Returns msgpack, how many are new.
local new = 0
for _, group in ipairs(ARGV) do
  local done = redis.pcall('XGROUP', 'CREATE', KEYS[1], group, '0', 'MKSTREAM')
  if not done.err then
    new = new + 1
  elseif string.sub(done.err, 1, 9) ~= 'BUSYGROUP' then
    return done
  end
end
return cmsgpack.pack(new)
