-- Counters as of now, and whether an amount would fit.
-- KEYS  a counter for each line
-- ARGV  1 tag, 2 msgpack of lines {line key, kind, a, b, limit, amount}
-- Returns msgpack {"seen", now, {committed, held, reset, short 0/1} for each line} or {"window", now}.
local tag, lines = ARGV[1], cmsgpack.unpack(ARGV[2])
if astray(lines) then return pack('window') end
sweep(tag, 'open', 64)
local states = {}
for i, line in ipairs(lines) do
  local n = read(KEYS[i], line[2], line[3], line[4], line[5])
  local lacking = n.c + n.h + line[6] - line[5]
  states[i] = {n.c, n.h, reset_at(n, line[5], lacking), lacking > 0 and 1 or 0}
end
return pack('seen', states)
