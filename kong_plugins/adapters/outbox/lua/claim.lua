-- Take over entries that were delivered and never acknowledged: of consumers known to be gone, or not heard of for long.
-- An entry that was delivered too often is a suspect: whoever wrote it may have died of it. Suspects are taken one at a
-- time, so that the count of none rises but of the one that is tried.
-- KEYS  1 the partition's outbox
-- ARGV  1 group, 2 consumer, 3 entries at most, 4 milliseconds after which a silent consumer counts as gone,
--       5 deliveries after which an entry is a suspect, 6 "1": take the first suspect, else leave them, 7.. consumers
--       known to be gone
-- Returns msgpack {{{position, {fields and values}} for each}, deliveries of the first, "1" where suspects are left,
--       {the other consumers that have entries}}.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local count, silent_ms, deliveries_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local want_suspect = ARGV[6] == '1'
local gone = {}
for i = 7, #ARGV do gone[ARGV[i]] = true end

local consumers = redis.pcall('XINFO', 'CONSUMERS', key, group)
if consumers.err then return cmsgpack.pack({{}, 0, '0', {}}) end -- no such group or stream: nothing was delivered

local pending, others = {}, {}
for _, info in ipairs(consumers) do
  local name, has, idle = info[2], info[4], info[6]
  if has > 0 then
    if gone[name] or (name ~= consumer and idle >= silent_ms) then
      for _, entry in ipairs(redis.call('XPENDING', key, group, '-', '+', count, name)) do
        local ms, seq = string.match(entry[1], '(%d+)-(%d+)')
        pending[#pending + 1] = {id = entry[1], ms = tonumber(ms), seq = tonumber(seq), n = entry[4]}
      end
    elseif name ~= consumer then
      others[#others + 1] = name
    end
  end
end
table.sort(pending, function(a, b) return a.ms < b.ms or (a.ms == b.ms and a.seq < b.seq) end)

local ids, suspects, deliveries = {}, '0', 0
for _, entry in ipairs(pending) do
  local suspect = entry.n > deliveries_max
  if suspect then suspects = '1' end
  if suspect == want_suspect and #ids < (want_suspect and 1 or count) then
    ids[#ids + 1] = entry.id
    if #ids == 1 then deliveries = entry.n end
  end
end
local taken = {}
if #ids > 0 then taken = redis.call('XCLAIM', key, group, consumer, 0, unpack(ids)) end
return cmsgpack.pack({taken, deliveries, suspects, others})
