-- Holds. A record is {s state, n states as first answered, ...}; an open one also has
--   at, l when it lapses, e when its grace is over, k how long its end is remembered, v event to expire with,
--   i id, b lines {counter, line key, kind, a, b, amount, weights of uncached, cached, completion, request, denominator}
-- One that took slots has o, their keys while it is open, and q, how many of each were taken before it.
-- An attempt at a logical request has t, also once it ended (and i then too), see attempts.lua; r is what it reversed.
local function find(tag, member)
  local packed = redis.call('GET', tag .. 'hold:' .. member)
  return packed and cmsgpack.unpack(packed)
end

-- A line of a hold, from the line as asked for and its counter.
local function held_line(key, line, n)
  return {key, line[1], n.kind, n.a, n.b, line[6], line[9], line[10], line[11], line[12], line[13]}
end

-- A new hold is open from now on.
local function keep_hold(tag, member, hold)
  redis.call('SET', tag .. 'hold:' .. member, cmsgpack.pack(hold), 'PXAT', ms(hold.e + MONTH))
  redis.call('ZADD', tag .. 'open', hold.l, member)
end

-- Give back the slots that a hold has taken.
local function leave(hold)
  for _, key in ipairs(hold.o or {}) do redis.call('ZREM', key, hold.i) end
  hold.o = nil
end

-- The end of a hold: remembered for a while, its event in the outbox.
local function finish(tag, member, hold, state, event, posted, reversed)
  leave(hold)
  local ended = {s = state, at = hold.at, n = hold.n, q = hold.q, p = posted, t = hold.t, i = hold.t and hold.i, r = reversed}
  redis.call('SET', tag .. 'hold:' .. member, cmsgpack.pack(ended), 'PXAT', ms(now + hold.k))
  redis.call('ZREM', tag .. (hold.s == 'open' and 'open' or 'lapsed'), member)
  local fields = {}
  for _, line in ipairs(posted) do
    fields[#fields + 1] = 'posted.' .. line[1]
    fields[#fields + 1] = line[2]
  end
  redis.call('XADD', tag .. 'outbox', '*', 'id', hold.i, 'event', event, unpack(fields))
  return ended
end

-- What the clock alone does to a hold: it lapses (its amounts are free again), then it expires. Returns what it is now.
local function advance(tag, member, hold)
  if hold.s == 'open' and now >= hold.l then
    for _, line in ipairs(hold.b) do
      if redis.call('EXISTS', line[1]) == 1 then redis.call('HINCRBY', line[1], 'h', -line[6]) end
    end
    leave(hold)
    redis.call('ZREM', tag .. 'open', member)
    redis.call('ZADD', tag .. 'lapsed', hold.e, member)
    hold.s = 'lapsed'
    redis.call('SET', tag .. 'hold:' .. member, cmsgpack.pack(hold), 'KEEPTTL')
  end
  if hold.s == 'lapsed' and now >= hold.e then
    if hold.t then conclude(tag, hold.t, hold.i, 'b') end
    return finish(tag, member, hold, 'expired', hold.v, {})
  end
  return hold
end

-- Advance the holds of an index that are due, at most `bound` of them. Returns how many there were and how many ended.
local function sweep(tag, index, bound)
  local due = redis.call('ZRANGEBYSCORE', tag .. index, '-inf', now, 'LIMIT', 0, bound)
  local ended = 0
  for _, member in ipairs(due) do
    local hold = find(tag, member)
    if not hold then
      redis.call('ZREM', tag .. index, member)
    elseif advance(tag, member, hold).s == 'expired' then
      ended = ended + 1
    end
  end
  return #due, ended
end
