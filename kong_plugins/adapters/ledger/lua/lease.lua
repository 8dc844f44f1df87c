-- Make a node's lease what it asks for, as far as there is room. What it had of counters that it does not name is given back.
-- KEYS  1 the lease, 2.. a counter for each line
-- ARGV  1 tag, 2 tenant, 3 encoded tenant, 4 member (encoded tenant/lease id), 5 msgpack of {ttl, percent, turn, lines}, a line
--       being {line key, kind, a, b, limit, least, mode, window in words}
-- Returns msgpack {"leased", now, {{amount, wanted, committed, held, reset} for each line}}; "stale" when a
--       later turn was here before; "window" as from hold.lua. The same turn once more changes nothing: by now its node may
--       have given away what another look would take back.
local tag, tenant, encoded, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl, percent, turn, lines = unpack(cmsgpack.unpack(ARGV[5]), 1, 4)
if astray(lines) then return pack('window') end
sweep(tag, 'open', 64)
sweep_leases(tag, 64)

local lease = find_lease(tag, member)
if lease and turn < lease.n then return pack('stale') end
local again = lease and turn == lease.n
local had, kept, answer = lease and lease.b or {}, {}, {}
for i, line in ipairs(lines) do
  local key, limit, hard = KEYS[i + 1], line[5], line[7] == 'hard'
  local n = read(key, line[2], line[3], line[4], limit)
  local mine = had[key] or 0
  local left = math.max(0, limit - n.c - n.h + mine)
  local wanted = hard and muldiv(left, percent, 100) or 0
  local amount = mine
  if not again then
    had[key] = nil
    amount = hard and math.max(line[6], wanted) or 0
    if amount > mine then amount = math.min(amount, math.max(mine, left)) end
    if amount ~= mine then
      n.h = n.h + amount - mine
      write(n, limit, ttl,
        {tag = tag, tenant = tenant, member = encoded, line = line[1], window = line[8], mode = line[7]})
    end
    if amount > 0 then kept[key] = amount end
  end
  answer[i] = {amount, wanted, n.c, n.h, reset_at(n, limit, 0)}
end
if not again then
  give_back(had)
  keep_lease(tag, member, {e = now + ttl, n = turn, b = kept})
end
return pack('leased', answer)
