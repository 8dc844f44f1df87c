-- Hold every line or none.
-- KEYS  1 the hold, 2.. a counter for each line
-- ARGV  1 tag, 2 tenant, 3 encoded tenant, 4 member (encoded tenant/hold id), 5 msgpack of
--       {hold id, ttl, grace, how long its end is remembered, event to expire with, lines}, a line being
--       {line key, kind, a, b, limit, amount, mode, window in words, uncached, cached, completion, request, denominator}
-- Returns msgpack {status, now, value}: "held" or "refused" with {committed, held, reset, short 0/1} for each line;
--       "again" with {when, those as first answered}; "window" when a fixed window is not the server's current one.
local tag, tenant, encoded, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local id, ttl, grace, remembered, event, lines = unpack(cmsgpack.unpack(ARGV[5]))
if astray(lines) then return pack('window') end
sweep(tag, 'open', 64)

local known = find(tag, member)
if known and known.n then return pack('again', {known.at, known.n}) end

local counters, states, refused = {}, {}, known and true or false
for i, line in ipairs(lines) do
  local limit, amount = line[5], line[6]
  local n = read(KEYS[i + 1], line[2], line[3], line[4], limit)
  local lacking = n.c + n.h + amount - limit
  local short = lacking > 0
  refused = refused or (short and line[7] == 'hard')
  counters[i] = n
  states[i] = {n.c, n.h, 0, short and 1 or 0, lacking}
end

local kept = {}
for i, line in ipairs(lines) do
  local n, state = counters[i], states[i]
  local lacking = table.remove(state)
  if refused or lacking > 0 then state[3] = reset_at(n, line[5], lacking) end
  if not refused then
    n.h = n.h + line[6]
    write(n, line[5], ttl + grace,
      {tag = tag, tenant = tenant, member = encoded, line = line[1], window = line[8], mode = line[7]})
    state[2] = n.h
    if lacking <= 0 then state[3] = reset_at(n, line[5], 0) end
    kept[i] = {KEYS[i + 1], line[1], n.kind, n.a, n.b, line[6], line[9], line[10], line[11], line[12], line[13]}
  end
end
if refused then return pack('refused', states) end

local lapses = now + ttl
local hold = {s = 'open', at = now, n = states, l = lapses, e = lapses + grace, k = remembered, v = event, i = id, b = kept}
redis.call('SET', KEYS[1], cmsgpack.pack(hold), 'PXAT', ms(hold.e + MONTH))
redis.call('ZADD', tag .. 'open', lapses, member)
return pack('held', states)
