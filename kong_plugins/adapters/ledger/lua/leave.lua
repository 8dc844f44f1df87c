-- Give places back. Those that are not taken (any more) change nothing.
-- KEYS  as for enter.lua
-- ARGV  members
-- Returns msgpack {"left", now, how many were taken}.
local left = 0
for _, member in ipairs(ARGV) do
  if give_back(KEYS, member) then left = left + 1 end
end
return pack('left', left)
