-- Hold every line or none. An attempt is tried only where no earlier one answers for it.
-- KEYS  1 the hold, 2.. a counter for each line
-- ARGV  1 tag, 2 tenant, 3 encoded tenant, 4 member (encoded tenant/hold id), 5 msgpack of
--       {hold id, ttl, grace, how long its end is remembered, event to expire with, lines, attempt, slots}, a line
--       being {line key, kind, a, b, limit, amount, mode, window in words, uncached, cached, completion, request,
--       denominator}, an attempt {TENANT/KIND/KEY, fingerprint, derived 0/1, retry 0/1, how long it is remembered,
--       attempts of one logical request at most, logical requests of one key at most} or nil, slots nil or for each
--       {TENANT/KEY, limit, how long one is taken}
-- Returns msgpack {status, now, value}: "held" or "refused" with states, {committed, held, reset, short 0/1} for each
--       line, where slots were asked for with {states, how many of each were taken}; "busy" with how many of each are
--       taken, when one has none free; "again" with {when, states as first answered, and of slots likewise}; "window"
--       when a fixed window is not the server's current one;
--       "running", "gone" or "mismatch" with {the earlier attempt}; "finished" with {the earlier attempt, its answer}.
local tag, tenant, encoded, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local id, ttl, grace, remembered, event, lines, attempt, slots = unpack(cmsgpack.unpack(ARGV[5]), 1, 8)
if astray(lines) then return pack('window') end
sweep(tag, 'open', 64)

local known = find(tag, member)
if known and known.n then return pack('again', {known.at, known.n, known.q}) end

-- Where a logical request stands: 'r', 'l' or 'k' (then with the answer), or 'b', and it may be tried again.
local function standing(entry)
  if entry[1] == 'r' and now >= entry[5] then
    -- No sweep came by yet. A store that lost the hold lost its end too.
    local current = encoded .. '/' .. entry[2]
    local hold = find(tag, current)
    if hold then advance(tag, current, hold) end
    return 'b'
  elseif entry[1] == 'k' then
    local answer = redis.call('GET', tag .. 'answer:' .. encoded .. '/' .. entry[2])
    if answer then return 'k', answer end
    return 'b'
  elseif entry[1] == 'u' then
    return 'b'
  end
  return entry[1]
end

-- Which logical request an attempt is for: its number or nil (a new one), else nil and the answer in its place.
local function look(suffix, fingerprint, derived, retry, most)
  if derived == 1 and retry == 0 then return nil end
  local all = redis.call('HGETALL', tag .. 'tries:' .. suffix)
  local entries, numbers = {}, {}
  for i = 1, #all, 2 do
    local number = tonumber(all[i])
    if number then
      local entry = cmsgpack.unpack(all[i + 1])
      if now < remembered_until(entry) then
        entries[number] = entry
        numbers[#numbers + 1] = number
      end
    end
  end
  table.sort(numbers, function(x, y) return x > y end)
  if derived == 0 then
    local entry = entries[numbers[1]]
    if not entry then return nil end
    if entry[6] ~= fingerprint then return nil, {'mismatch', {entry[2]}} end
    local stands, answer = standing(entry)
    if stands == 'r' then return nil, {'running', {entry[2]}} end
    if stands == 'l' then return nil, {'gone', {entry[2]}} end
    if stands == 'k' then return nil, {'finished', {entry[2], answer}} end
    return entry[4] < most and numbers[1] or nil
  end
  local running, finished
  for _, number in ipairs(numbers) do
    local entry = entries[number]
    local stands, answer = standing(entry)
    if stands == 'b' and entry[4] < most then return number end
    if stands == 'r' then running = running or {'running', {entry[2]}} end
    if stands == 'k' then finished = finished or {'finished', {entry[2], answer}} end
  end
  return nil, running or finished
end

local number
if attempt and not known then
  local suffix, fingerprint, derived, retry, _, most = unpack(attempt)
  local earlier
  number, earlier = look(suffix, fingerprint, derived, retry, most)
  if earlier then return pack(earlier[1], earlier[2]) end
end

local taken, busy = {}, false
for i, each in ipairs(slots or {}) do
  local key = tag .. 'slots:' .. each[1]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  taken[i] = redis.call('ZCARD', key)
  busy = busy or taken[i] >= each[2]
end
if busy then return pack('busy', taken) end

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
    kept[i] = held_line(KEYS[i + 1], line, n)
  end
end
local answer = slots and {states, taken} or states
if refused then return pack('refused', answer) end

local lapses = now + ttl
local hold = {s = 'open', at = now, n = states, l = lapses, e = lapses + grace, k = remembered, v = event, i = id, b = kept}
if attempt then
  hold.t = begin(tag, attempt[1], number, member, id, hold.e, attempt[5], attempt[2], attempt[7])
end
if slots then
  hold.o, hold.q = {}, taken
  for i, each in ipairs(slots) do
    local key = tag .. 'slots:' .. each[1]
    hold.o[i] = key
    redis.call('ZADD', key, now + each[3], id)
    if redis.call('PTTL', key) < ms(each[3]) then redis.call('PEXPIREAT', key, ms(now + each[3])) end
  end
end
keep_hold(tag, member, hold)
return pack('held', answer)
