-- End a hold with its request's real usage: counters, the memory of its end and its event in one step. The weights are
-- those stored in the hold, so neither the caller's configuration nor an edit of it matters. Of two attempts at a logical
-- request the cheaper is reversed.
-- KEYS  1 the hold
-- ARGV  1 tag, 2 encoded tenant, 3 tenant, 4 member, 5 prompt tokens, 6 of these cached, 7 completion tokens, 8 event,
--       and for an attempt: 9 how it stands, see attempts.lua, 10 bytes of answers kept for a tenant at most,
--       11 reversal's id, 12 reversal, 13 answer
-- Returns msgpack {"posted" or "repeated", now, {{line key, amount} for each line, attempt reversed or nothing}} or
--       {"unknown", now}.
local tag, encoded, tenant, member = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local prompt, cached, completion = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local hold = find(tag, member)
if not hold then return pack('unknown') end
hold = advance(tag, member, hold)
local t = hold.t
if hold.s ~= 'open' and hold.s ~= 'lapsed' then
  local request = t and hold.s == 'settled' and logical(tag, t)
  if request and request.entry[2] == hold.i then
    local was = BETTER[request.entry[1]]
    if was and (BETTER[ARGV[9]] or 0) > was then
      local standing = kept_as(tag, encoded, t, hold.i, ARGV[9], ARGV[13], tonumber(ARGV[10]))
      if BETTER[standing] > was then stand(tag, t, request, standing) end
    end
  end
  return pack('repeated', {hold.p, hold.r})
end

local posted, costs = {}, prompt + completion > 0
for i, line in ipairs(hold.b) do
  local whole, part = 0, 0
  for _, term in ipairs({{prompt - cached, line[7]}, {cached, line[8]}, {completion, line[9]}}) do
    local quotient, rest = muldiv(term[1], term[2], line[11])
    whole, part = whole + quotient, part + rest
  end
  posted[i] = {line[2], whole + math.ceil(part / line[11]) + line[10]}
  costs = costs or posted[i][2] > 0
end

-- The charge so far is taken back if this one is at least as dear, else this one is. What no event can take back from the
-- books stays on the counters too; what costs nothing needs no taking back.
local charged, tokens, reversal, replaced = nil, prompt + completion, ARGV[12], false
if t and costs then
  local packed = redis.call('GET', tag .. 'charged:' .. t[3])
  charged = packed and cmsgpack.unpack(packed)
  replaced = charged and charged[2] <= tokens and charged[4] ~= ''
end
local cheaper = charged and charged[2] > tokens and reversal ~= ''
local mine = t and {hold.i, tokens, ARGV[11], reversal, {}}

for i, line in ipairs(hold.b) do
  local amount = posted[i][2]
  local seen = redis.call('HMGET', line[1], 'l', 'm', 'w')
  local limit = tonumber(seen[1]) or 0
  local n = read(line[1], line[3], line[4], line[5], limit)
  local used = math.min(now, hold.l)
  if hold.s == 'open' then n.h = n.h - line[6] end
  local counts = not cheaper and post(n, amount, used)
  if mine then
    mine[5][i] = {counts and line[1], line[2], n.kind, n.a, n.b, amount, n.kind == 'b' and now or used, limit}
  end
  write(n, limit, 0,
    {tag = tag, tenant = tenant, member = encoded, line = line[2], window = seen[3] or '', mode = seen[2] or 'hard'})
end

local reversed = cheaper and hold.i or replaced and charged[1] or nil
finish(tag, member, hold, 'settled', ARGV[8], posted, reversed)
if t then
  if cheaper then
    reverse(tag, encoded, tenant, mine)
  elseif replaced then
    reverse(tag, encoded, tenant, charged)
  end
  local request = logical(tag, t)
  local current = request and request.entry[2] == hold.i
  if costs and (not charged or charged[2] <= tokens) then
    local until_ = now + t[4]
    if request and not current and request.entry[1] == 'r' then until_ = math.max(until_, request.entry[5] + MONTH) end
    redis.call('SET', tag .. 'charged:' .. t[3], cmsgpack.pack(mine), 'PXAT', ms(until_))
  end
  if current then
    stand(tag, t, request, kept_as(tag, encoded, t, hold.i, ARGV[9], ARGV[13], tonumber(ARGV[10])))
  end
end
return pack('posted', {posted, reversed})
