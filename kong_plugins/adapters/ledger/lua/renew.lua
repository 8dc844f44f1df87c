-- Vouch for places once more. One that is gone stays gone: another process may have given it back.
-- KEYS  as for enter.lua
-- ARGV  1 how long they are taken from now, 2.. members
-- Returns msgpack {"renewed", now, {a member that is gone, ...}}.
local lease, gone = tonumber(ARGV[1]), {}
for i = 2, #ARGV do
  local until_ = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if until_ and tonumber(until_) > now then
    redis.call('ZADD', KEYS[1], 'XX', now + lease, ARGV[i])
  else
    gone[#gone + 1] = ARGV[i]
  end
end
for i = 1, 3 do redis.call('PEXPIREAT', KEYS[i], ms(now + lease)) end
return pack('renewed', gone)
