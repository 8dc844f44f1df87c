-- Let due holds of a partition lapse, end those whose grace is over, and leases that are over; at most so many of each.
-- KEYS  1 the partition's open holds
-- ARGV  1 tag, 2 bound
-- Returns msgpack {"more" when there may be further ones, else "done", now, how many ended}.
local tag, bound = ARGV[1], tonumber(ARGV[2])
local due, ended = sweep(tag, 'open', bound)
local over, ended_late = sweep(tag, 'lapsed', bound)
local given = sweep_leases(tag, bound)
return pack((due == bound or over == bound or given == bound) and 'more' or 'done', ended + ended_late)
