-- Append the event of a request that held nothing, once for each id.
-- KEYS  1 the hold there would have been
-- ARGV  1 tag, 2 member, 3 event id, 4 event, 5 how long it is remembered
-- Returns msgpack {"posted" or "repeated", now}.
if find(ARGV[1], ARGV[2]) then return pack('repeated') end
finish(ARGV[1], ARGV[2], {i = ARGV[3], k = tonumber(ARGV[5])}, 'settled', ARGV[4], {})
return pack('posted')
