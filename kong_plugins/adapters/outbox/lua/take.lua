-- New entries for a consumer, in order. A group that is not there (a new sink, a store that lost it) begins at the first
-- entry there is.
-- KEYS  1 the partition's outbox
-- ARGV  1 group, 2 consumer, 3 entries at most, 4 bytes of events after which no more are read
-- Returns msgpack {{position, {fields and values}} for each}.
local group, consumer = ARGV[1], ARGV[2]
local left, bytes_left = tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = {}
while left > 0 and bytes_left > 0 do
  local asked = math.min(left, 32)
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', asked, 'STREAMS', KEYS[1], '>')
  if reply and reply.err then
    if string.sub(reply.err, 1, 7) ~= 'NOGROUP' then return reply end
    redis.call('XGROUP', 'CREATE', KEYS[1], group, '0', 'MKSTREAM')
  else
    local entries = reply and reply[1][2] or {}
    for _, entry in ipairs(entries) do
      taken[#taken + 1] = entry
      for i = 2, #entry[2], 2 do bytes_left = bytes_left - #entry[2][i] end
    end
    left = #entries < asked and 0 or left - asked
  end
end
return cmsgpack.pack(taken)
