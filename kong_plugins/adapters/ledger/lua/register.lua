-- Hold, after the event, what a request was admitted with while nobody asked the ledger. It runs already, so it is held
-- whatever there is room for: out of its node's lease, and what that has not got on top.
-- KEYS  1 the hold, 2.. a counter for each line, of the windows at which it was admitted
-- ARGV  1 tag, 2 tenant, 3 encoded tenant, 4 member (encoded tenant/hold id), 5 its lease's member or '', 6 when it was
--       admitted, 7 how long after (or before) that it can be held, 8 msgpack as of hold.lua, without slots
-- Returns msgpack {"held", "again" or "late", now}.
local tag, tenant, encoded, member, lender = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, ttl, grace, remembered, event, lines, attempt = unpack(cmsgpack.unpack(ARGV[8]), 1, 7)
if find(tag, member) then return pack('again') end
-- Its end would be remembered for twice as long: one that nobody knows of was not held, and one that was is not held twice.
-- As long before: a node whose clock is ahead could else hold for hours to come.
if math.abs(now - tonumber(ARGV[6])) > tonumber(ARGV[7]) then return pack('late') end
sweep_leases(tag, 64)

local lease = find_lease(tag, lender)
local states, kept = {}, {}
for i, line in ipairs(lines) do
  local key, limit, amount = KEYS[i + 1], line[5], line[6]
  local n = read(key, line[2], line[3], line[4], limit)
  local moved = lease and line[7] == 'hard' and math.min(lease.b[key] or 0, amount) or 0
  if moved > 0 then lease.b[key] = lease.b[key] > moved and lease.b[key] - moved or nil end
  n.h = n.h + amount - moved
  write(n, limit, ttl + grace,
    {tag = tag, tenant = tenant, member = encoded, line = line[1], window = line[8], mode = line[7]})
  states[i] = {n.c, n.h, reset_at(n, limit, 0), n.c + n.h > limit and 1 or 0}
  kept[i] = held_line(key, line, n)
end
if lease then keep_lease(tag, lender, lease) end

local lapses = now + ttl
local hold = {s = 'open', at = now, n = states, l = lapses, e = lapses + grace, k = remembered, v = event, i = id, b = kept}
if attempt then
  hold.t = begin(tag, attempt[1], nil, member, id, hold.e, attempt[5], attempt[2], attempt[7])
end
keep_hold(tag, member, hold)
return pack('held')
