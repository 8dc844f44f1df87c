-- Remove what every group has acknowledged: entries before each group's first pending one and, where nothing is
-- pending, up to its last delivered one. Without a group nothing is removed.
-- KEYS  1 the partition's outbox
-- ARGV  1 milliseconds for which entries are kept anyway
-- Returns msgpack, how many were removed.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err or #groups == 0 then return cmsgpack.pack(0) end

local function parts(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(seq)
end

local t = redis.call('TIME')
local ms, seq = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) - tonumber(ARGV[1]) + 1, 0
for _, info in ipairs(groups) do
  local about = {}
  for i = 1, #info, 2 do about[info[i]] = info[i + 1] end
  local first_ms, first_seq
  if about['pending'] > 0 then
    first_ms, first_seq = parts(redis.call('XPENDING', KEYS[1], about['name'])[2])
  else
    first_ms, first_seq = parts(about['last-delivered-id'])
    first_seq = first_seq + 1
  end
  if first_ms < ms or (first_ms == ms and first_seq < seq) then ms, seq = first_ms, first_seq end
end
if ms < 1 then return cmsgpack.pack(0) end
return cmsgpack.pack(redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-%.0f', ms, seq)))
