-- Put in front of every script, then attempts.lua, holds.lua and leases.lua. Integers only, exact below 2^53; times are
-- microseconds of the server's clock.
--
-- Keys of a partition, all with its hash tag, so derivable from `tag` ("{p17}:"):
--   {pN}:open               zset   open holds by when they lapse
--   {pN}:lapsed             zset   lapsed holds by when their grace is over
--   {pN}:tenants            zset   tenants by until when they have a live counter
--   {pN}:outbox             stream events: id, event, then (posted.LINE, amount) pairs
--   {pN}:hold:TENANT/ID     string msgpack of a hold, see hold.lua; short-lived once it has ended
--   {pN}:slots:TENANT/KEY   zset   ids of holds that have one of these slots, by until when
--   {pN}:live:TENANT        zset   counters of a tenant by until when they are live
--   {pN}:count:TENANT/LINE/WINDOW  hash, a counter:
--       c committed  h held  x expires  l limit  m mode  k line key  w window  q kind  a b the kind's numbers
--       rolling: o no slice before this one, and a field for each slice;  bucket: t as of, f fraction of a unit
--   {pN}:grants:TENANT      stream grants and resets;   {pN}:grant:TENANT/ID  string, a grant made
-- and those of attempts and leases, see attempts.lua and leases.lua.
--
-- A window kind has two numbers (a, b): fixed "f" start and end, rolling "r" slice width and slices, bucket "b" refill
-- time and 0. The limit is no part of a key: an edited budget keeps its count.

local HOUR = 3600000000
local MONTH = 31 * 24 * HOUR
local FAR = 120 * MONTH -- a bucket overdrawn beyond all measure is full "in ten years"

local function server_time()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local now = server_time()

local function ms(us)
  return math.ceil(us / 1000)
end

-- floor(a*b / c) and a*b mod c, exact for a and b below 2^53 and c up to 2^50, where a*b itself is not: long division
-- by the digits of a. Below 2^42, which is what c usually is, it takes ten bits at a time.
local function muldiv(a, b, c)
  if a * b < 9007199254740992 then
    local rest = math.fmod(a * b, c)
    return (a * b - rest) / c, rest
  end
  local base = c < 4398046511104 and 1024 or 4
  local part = math.fmod(b, c)
  local whole = a * ((b - part) / c)
  local digits = {}
  while a > 0 do
    local digit = math.fmod(a, base)
    digits[#digits + 1] = digit
    a = (a - digit) / base
  end
  local quotient, rest = 0, 0
  for i = #digits, 1, -1 do
    rest = rest * base + digits[i] * part
    local left = math.fmod(rest, c)
    quotient = quotient * base + (rest - left) / c
    rest = left
  end
  return quotient + whole, rest
end

-- A counter as of now: {key, kind, a, b, c, h, ...}. Writes only what time alone does (slices that have left).
local function read(key, kind, a, b, limit)
  local v = redis.call('HMGET', key, 'c', 'h', 'x', 'o', 't', 'f')
  local n = {key = key, kind = kind, a = a, b = b, c = tonumber(v[1]) or 0, h = tonumber(v[2]) or 0, x = tonumber(v[3])}
  if kind == 'r' then
    n.slice = math.floor(now / a)
    n.o = tonumber(v[4]) or n.slice
    local first = n.slice - b
    if n.o < first then
      local all = redis.call('HGETALL', key)
      local gone = {}
      for i = 1, #all, 2 do
        local index = tonumber(all[i])
        if index and index < first then
          n.c = n.c - tonumber(all[i + 1])
          gone[#gone + 1] = all[i]
        end
      end
      if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
      n.o = first
      redis.call('HSET', key, 'c', n.c, 'o', first)
    end
  elseif kind == 'b' then
    n.t, n.f = tonumber(v[5]) or now, tonumber(v[6]) or 0
    if now > n.t then
      local back, rest = muldiv(now - n.t, limit, a)
      rest = rest + n.f
      if rest >= a then back, rest = back + 1, rest - a end
      if back >= n.c then
        n.c, n.f = math.min(n.c, 0), 0
      else
        n.c, n.f = n.c - back, rest
      end
      n.t = now
    end
  end
  return n
end

-- When `lacking` units will be free again; where it is not positive, or waiting alone never frees that much: when all
-- that counts now will be.
local function reset_at(n, limit, lacking)
  if n.kind == 'f' then return n.b end
  if n.kind == 'r' then
    if n.c == 0 and n.h == 0 and lacking <= 0 then return now end
    if lacking > 0 then
      local all = redis.call('HGETALL', n.key)
      local slices, sum = {}, {}
      for i = 1, #all, 2 do
        local index = tonumber(all[i])
        if index then
          slices[#slices + 1] = index
          sum[index] = tonumber(all[i + 1])
        end
      end
      table.sort(slices)
      local freed = 0
      for _, index in ipairs(slices) do
        freed = freed + sum[index]
        if freed >= lacking then return (index + n.b + 1) * n.a end
      end
    end
    return (n.slice + n.b + 1) * n.a
  end
  if limit == 0 then return now + n.a end
  local wanted = (lacking > 0 and lacking <= n.c) and lacking or n.c + n.h
  if wanted <= 0 then return now end
  local wait, rest = muldiv(wanted, n.a, limit)
  return now + math.min(wait + math.ceil((rest - n.f) / limit), FAR)
end

-- Count `amount` as used at `used`; not at all (false) once that has left the window.
local function post(n, amount, used)
  if n.kind == 'r' then
    local index = math.floor(used / n.a)
    if index < n.slice - n.b then return false end
    redis.call('HINCRBY', n.key, string.format('%.0f', index), amount)
  elseif n.kind == 'b' and used + n.a <= now then
    return false
  end
  n.c = n.c + amount
  return true
end

-- Undo `post`: what of `amount` still counts. `at`: when it was used (rolling) or came in (bucket). Of a bucket's, all that
-- may have flowed back since (at a limit of `limit`) is left where it is, or it would flow back twice.
local function take_back(n, amount, at, limit)
  if n.kind ~= 'b' then return post(n, 0 - amount, at) end
  local flowed, rest = muldiv(now - at, limit, n.a)
  n.c = n.c - math.max(0, amount - flowed - (rest > 0 and 1 or 0))
end

-- Write a counter back. `extra`: how long it must outlive its window for holds that may settle late.
-- `about`: {tag, tenant, line key, window in words, limit, mode} where these may be new.
local function write(n, limit, extra, about)
  local fields = {'c', n.c, 'h', n.h}
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  local until_, slack = math.max(n.b, now), 0 -- a window may be over for which a request is held after the event
  if n.kind == 'r' then
    until_ = now + n.a * (n.b + 1)
    set('o', n.o)
  elseif n.kind == 'b' then
    until_ = n.c < 0 and now + MONTH or math.max(now + n.a, reset_at(n, limit, 0))
    set('t', n.t)
    set('f', n.f)
  end
  if n.kind ~= 'f' then
    -- One key serves all time: it must outlive every hold on it, also those that no sweep came by for long, or their
    -- amounts would be taken off a younger count. Once an hour is often enough to extend it.
    extra, slack = extra + MONTH, HOUR
  end
  set('l', limit)
  set('m', about.mode)
  if n.x and n.x >= until_ + extra then
    redis.call('HSET', n.key, unpack(fields))
    return
  end
  n.x = until_ + extra + slack
  set('x', n.x)
  set('k', about.line)
  set('w', about.window)
  set('q', n.kind)
  set('a', n.a)
  set('b', n.b)
  redis.call('HSET', n.key, unpack(fields))
  redis.call('PEXPIREAT', n.key, ms(n.x))
  local live = n.kind == 'f' and n.b or n.x
  for key, name in pairs({[about.tag .. 'live:' .. about.member] = n.key, [about.tag .. 'tenants'] = about.tenant}) do
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('ZADD', key, 'GT', live, name)
    if redis.call('PTTL', key) < ms(n.x - now) then redis.call('PEXPIREAT', key, ms(n.x)) end
  end
end

-- The first fixed window of a request that does not contain the server's time: the caller's clock is wrong, or a window
-- just ended. It shall compute again from `now`.
local function astray(lines)
  for _, line in ipairs(lines) do
    if line[2] == 'f' and not (line[3] <= now and now < line[4]) then return true end
  end
  return false
end

local function pack(status, value)
  return cmsgpack.pack({status, now, value})
end
