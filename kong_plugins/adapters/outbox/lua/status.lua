-- Where each group stands.
-- KEYS  1 the partition's outbox, 2 how many dead letters each sink has
-- ARGV  1 the consumer that nobody is: what it has waits
-- Returns msgpack {entries in the stream, {{group, pending, not yet delivered, milliseconds since the oldest
--       unacknowledged was written or -1, milliseconds since a consumer was heard of or -1, consumers}...},
--       {sink, dead letters, ...}}.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
local dead = redis.call('HGETALL', KEYS[2])
if groups.err then return cmsgpack.pack({0, {}, dead}) end
local t = redis.call('TIME')
local now_ms = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local length = redis.call('XLEN', KEYS[1])

local function age(id)
  return math.max(0, now_ms - tonumber(string.match(id, '(%d+)-')))
end

local found = {}
for i, info in ipairs(groups) do
  local about = {}
  for j = 1, #info, 2 do about[info[j]] = info[j + 1] end
  local group, pending = about['name'], about['pending']
  local lag, oldest = about['lag'], -1
  if pending > 0 then oldest = age(redis.call('XPENDING', KEYS[1], group)[2]) end
  if not lag then lag = math.max(0, length - pending) end -- the server does not know: an upper bound
  if lag > 0 then
    local next_ = redis.call('XRANGE', KEYS[1], '(' .. about['last-delivered-id'], '+', 'COUNT', 1)
    if next_[1] then oldest = math.max(oldest, age(next_[1][1])) else lag = 0 end
  end
  local heard = -1
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group)) do
    if consumer[2] == ARGV[1] then
      pending, lag = pending - consumer[4], lag + consumer[4]
    elseif heard < 0 or consumer[6] < heard then
      heard = consumer[6]
    end
  end
  found[i] = {group, pending, lag, oldest, heard, about['consumers']}
end
return cmsgpack.pack({length, found, dead})
