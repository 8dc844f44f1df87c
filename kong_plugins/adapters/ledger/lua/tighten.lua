-- Lower an open hold's amounts; a higher one is left as it is. One that holds nothing is in no retry's way and has no slot.
-- KEYS  1 the hold
-- ARGV  1 tag, 2 member, 3 msgpack of {line key, amount} pairs
-- Returns msgpack {"open" or "closed", now}.
local tag, member = ARGV[1], ARGV[2]
local hold = find(tag, member)
hold = hold and advance(tag, member, hold)
if not hold or hold.s ~= 'open' then return pack('closed') end
local wanted = {}
for _, pair in ipairs(cmsgpack.unpack(ARGV[3])) do wanted[pair[1]] = pair[2] end
local emptied = true
for _, line in ipairs(hold.b) do
  local amount = wanted[line[2]]
  if amount and amount < line[6] then
    give_back({[line[1]] = line[6] - amount})
    line[6] = amount
  end
  emptied = emptied and line[6] == 0
end
if emptied then leave(hold) end
if emptied and hold.t then conclude(tag, hold.t, hold.i, 'b') end
redis.call('SET', KEYS[1], cmsgpack.pack(hold), 'KEEPTTL')
return pack('open')
