#!lua flags=no-writes
-- What was logged of a turn after an entry, and its result once it has ended.
--
-- KEYS   none; ARGV[1] makes them: reads turn, shelf, stream (types: keys.lua)
-- ARGV   owner, turn, number of the entry
-- result {entries as XRANGE gives them, result or nothing}, or nothing when there is no such turn
-- include keys
local _, turn, after = unpack(ARGV)
-- include shelf
local found = redis.call('HMGET', key('turn', turn), 'shelf', 'in')
if not found[1] then return false end
local entries = redis.call('XRANGE', key('stream', turn), (after + 1) .. '-0', '+')
return {entries, redis.call('HGET', key('shelf', found[1]), 'r' .. (range(found[2])))}
