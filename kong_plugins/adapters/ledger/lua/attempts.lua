-- Attempts at a logical request, see domain/attempts.py. Only a hold with `t` pays for them. Keys, of a partition too:
--   {pN}:tries:TENANT/KIND/KEY  hash  the logical requests of a key, numbered as they began: for each number msgpack
--       {standing, current attempt, first attempt, attempts made, when, fingerprint}, and `m`, msgpack
--       {last number, how many run, until when one that ended is remembered, until when one that runs is}
--       standing: r runs, b broken off (aborted, failed, expired), u finished and no answer kept, l too large, k kept
--       when: runs: its hold's grace is over; else it is forgotten
--   {pN}:charged:TENANT/FIRST   string  the attempt that is charged, as msgpack
--       {id, tokens, reversal's id, reversal, lines {counter or false, line key, kind, a, b, amount, at, limit}}
--   {pN}:answer:TENANT/ATTEMPT  string  a whole answer
--   {pN}:answers:TENANT         zset    "bytes/ATTEMPT" of the answers kept, by when they are forgotten
--   {pN}:answer_bytes:TENANT    string  their sum
-- A hold's `t` is {TENANT/KIND/KEY, number, TENANT/FIRST, how long it is remembered}.

local ANSWER_EXTRA = 256 -- what the store itself needs for an answer, roughly: small ones shall not come for free
local BETTER = {u = 1, l = 2, k = 3} -- what a second settlement of the same attempt may add to the first

local function remembered_until(entry)
  return entry[1] == 'r' and entry[5] + MONTH or entry[5]
end

-- The logical request a hold is for, if it is still remembered: {hash, number, the two parts of it}.
local function logical(tag, t)
  local tries = tag .. 'tries:' .. t[1]
  local packed = redis.call('HMGET', tries, 'm', t[2])
  if not packed[2] then return nil end
  local entry = cmsgpack.unpack(packed[2])
  if now >= remembered_until(entry) or entry[3] ~= t[3] then return nil end -- or forgotten, its number used again
  return {tries = tries, number = t[2], meta = cmsgpack.unpack(packed[1]), entry = entry}
end

-- The current attempt has come to `standing`; whatever else is known of the logical request is now forgotten `ttl` later.
local function stand(tag, t, request, standing)
  local meta, entry = request.meta, request.entry
  if entry[1] == 'r' then meta[2] = meta[2] - 1 end
  entry[1], entry[5] = standing, now + t[4]
  meta[3] = math.max(meta[3], entry[5])
  redis.call('HSET', request.tries, 'm', cmsgpack.pack(meta), request.number, cmsgpack.pack(entry))
  if meta[2] == 0 then redis.call('PEXPIREAT', request.tries, ms(meta[3])) end
  redis.call('PEXPIREAT', tag .. 'charged:' .. t[3], ms(entry[5]))
end

-- An attempt ended as `standing`. One that is no longer the current one has no say in what a retry finds.
local function conclude(tag, t, id, standing)
  local request = logical(tag, t)
  if request and request.entry[2] == id then stand(tag, t, request, standing) end
end

-- Begin an attempt: the next one at `number`, or (nil) the first one at a new logical request, which takes the oldest's place
-- when more than `bound` would be remembered. Returns the hold's `t`.
local function begin(tag, suffix, number, member, id, over, ttl, fingerprint, bound)
  local tries = tag .. 'tries:' .. suffix
  local packed = redis.call('HGET', tries, 'm')
  local meta = packed and cmsgpack.unpack(packed) or {0, 0, 0, 0}
  local entry
  if number then
    entry = cmsgpack.unpack(redis.call('HGET', tries, number))
    if entry[1] == 'r' then meta[2] = meta[2] - 1 end -- its hold was lost
    entry[1], entry[2], entry[4], entry[5] = 'r', id, entry[4] + 1, over
    redis.call('PEXPIREAT', tag .. 'charged:' .. entry[3], ms(math.max(over + MONTH, now + ttl)))
  else
    number = meta[1] + 1
    meta[1] = number
    entry = {'r', id, member, 1, over, fingerprint}
    local oldest = number - bound
    local dropped = oldest > 0 and redis.call('HGET', tries, oldest)
    if dropped then
      if cmsgpack.unpack(dropped)[1] == 'r' then meta[2] = meta[2] - 1 end
      redis.call('HDEL', tries, oldest)
    end
  end
  meta[2], meta[4] = meta[2] + 1, math.max(meta[4], over + MONTH)
  redis.call('HSET', tries, 'm', cmsgpack.pack(meta), number, cmsgpack.pack(entry))
  redis.call('PEXPIREAT', tries, ms(math.max(meta[3], meta[4])))
  return {suffix, number, entry[3], ttl}
end

-- Keep an answer within the tenant's `bound` of bytes; what would be forgotten next makes room, a bounded number of them.
-- False where there still is none.
local function keep(tag, encoded, id, answer, until_, bound)
  local index, sum = tag .. 'answers:' .. encoded, tag .. 'answer_bytes:' .. encoded
  local size = #answer + ANSWER_EXTRA
  local total = tonumber(redis.call('GET', sum)) or 0
  for _ = 1, 64 do
    local oldest = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')
    if not oldest[1] then total = 0 end
    if not oldest[1] or (total + size <= bound and tonumber(oldest[2]) > now) then break end
    local bytes, attempt = oldest[1]:match('^(%d+)/(.*)$')
    redis.call('ZREM', index, oldest[1])
    redis.call('DEL', tag .. 'answer:' .. encoded .. '/' .. attempt)
    total = total - tonumber(bytes)
  end
  local fits = total + size <= bound
  if fits then
    total = total + size
    redis.call('SET', tag .. 'answer:' .. encoded .. '/' .. id, answer, 'PXAT', ms(until_))
    redis.call('ZADD', index, until_, string.format('%.0f/', size) .. id)
  end
  redis.call('SET', sum, total, 'KEEPTTL')
  for _, key in ipairs({index, sum}) do
    if redis.call('PTTL', key) < ms(until_ - now) then redis.call('PEXPIREAT', key, ms(until_)) end
  end
  return fits
end

-- What a settlement's standing comes to once its answer was kept, or was not.
local function kept_as(tag, encoded, t, id, standing, answer, bound)
  if standing ~= 'k' then return standing end
  if #answer + ANSWER_EXTRA > bound then return 'l' end
  return keep(tag, encoded, id, answer, now + t[4], bound) and 'k' or 'u'
end

-- Take a charged attempt back: from the counters that still count it, and by an event.
local function reverse(tag, encoded, tenant, charged)
  local fields = {}
  for _, line in ipairs(charged[5]) do
    local key, kind, a, b, amount, at, then_limit = line[1], line[3], line[4], line[5], line[6], line[7], line[8]
    fields[#fields + 1] = 'posted.' .. line[2]
    fields[#fields + 1] = 0 - amount -- not -amount: that is "-0" where it is 0
    local seen = key and redis.call('HMGET', key, 'l', 'm', 'w') or {}
    local limit = tonumber(seen[1])
    if limit then
      local n = read(key, kind, a, b, limit)
      take_back(n, amount, at, math.max(limit, then_limit))
      write(n, limit, 0,
        {tag = tag, tenant = tenant, member = encoded, line = line[2], window = seen[3] or '', mode = seen[2] or 'hard'})
    end
  end
  redis.call('XADD', tag .. 'outbox', '*', 'id', charged[3], 'event', charged[4], unpack(fields))
end
