-- Post a grant to a line's current window, or grant all that is committed (reset). Once for each grant id.
-- KEYS  1 the grant, 2 the counter
-- ARGV  1 tag, 2 tenant, 3 encoded tenant, 4 grant id, 5 amount or "all", 6 reason,
--       7 msgpack of the line {line key, kind, a, b, limit, amount, mode, window in words}
-- Returns msgpack {"seen", now, {{committed, held, reset, short 0/1}}} or {"window", now}.
local tag, tenant, encoded, id, wanted, reason = unpack(ARGV, 1, 6)
local line = cmsgpack.unpack(ARGV[7])
if astray({line}) then return pack('window') end
sweep(tag, 'open', 64)
local limit = line[5]
local n = read(KEYS[2], line[2], line[3], line[4], limit)
if redis.call('SET', KEYS[1], '', 'NX', 'PXAT', ms(now + MONTH)) then
  local amount = wanted == 'all' and n.c or tonumber(wanted)
  if wanted == 'all' then
    if n.kind == 'r' then
      local all = redis.call('HKEYS', n.key)
      for _, field in ipairs(all) do
        if tonumber(field) then redis.call('HDEL', n.key, field) end
      end
    end
    n.c, n.f = 0, 0
  else
    post(n, -amount, now)
  end
  write(n, limit, 0,
    {tag = tag, tenant = tenant, member = encoded, line = line[1], window = line[8], mode = line[7]})
  local log = tag .. 'grants:' .. encoded
  redis.call('XADD', log, 'MAXLEN', '~', 1000, '*',
    'id', id, 'line', line[1], 'amount', amount, 'reason', reason, 'at', now)
  redis.call('PEXPIREAT', log, ms(now + 13 * MONTH)) -- a year of them, and the month one closes the books in
end
local lacking = n.c + n.h + line[6] - limit
return pack('seen', {{n.c, n.h, reset_at(n, limit, lacking), lacking > 0 and 1 or 0}})
