-- End a hold with its request's real usage: counters, the memory of its end and its event in one step. The weights are
-- those stored in the hold, so neither the caller's configuration nor an edit of it matters.
-- KEYS  1 the hold
-- ARGV  1 tag, 2 encoded tenant, 3 tenant, 4 member, 5 prompt tokens, 6 of these cached, 7 completion tokens, 8 event
-- Returns msgpack {"posted" or "repeated", now, {line key, amount} for each line} or {"unknown", now}.
local tag, encoded, tenant, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local prompt, cached, completion = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local hold = find(tag, member)
if not hold then return pack('unknown') end
hold = advance(tag, member, hold)
if hold.s ~= 'open' and hold.s ~= 'lapsed' then return pack('repeated', hold.p) end

local posted = {}
for i, line in ipairs(hold.b) do
  local whole, part = 0, 0
  for _, term in ipairs({{prompt - cached, line[7]}, {cached, line[8]}, {completion, line[9]}}) do
    local quotient, rest = muldiv(term[1], term[2], line[11])
    whole, part = whole + quotient, part + rest
  end
  local amount = whole + math.ceil(part / line[11]) + line[10]
  posted[i] = {line[2], amount}

  local seen = redis.call('HMGET', line[1], 'l', 'm', 'w')
  local limit = tonumber(seen[1]) or 0
  local n = read(line[1], line[3], line[4], line[5], limit)
  if hold.s == 'open' then n.h = n.h - line[6] end
  post(n, amount, math.min(now, hold.l))
  write(n, limit, 0,
    {tag = tag, tenant = tenant, member = encoded, line = line[2], window = seen[3] or '', mode = seen[2] or 'hard'})
end
finish(tag, member, hold, 'settled', ARGV[8], posted)
return pack('posted', posted)
