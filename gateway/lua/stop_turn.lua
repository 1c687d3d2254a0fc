#!lua flags=allow-oom
-- Ask whoever runs a turn to end it.
--
-- KEYS   none; ARGV[1] makes them: writes turn (types: keys.lua)
-- ARGV   owner, turn
-- result 1 when it runs, else 0
-- include keys
local turn_key = key('turn', ARGV[2])
if redis.call('HGET', turn_key, 'status') ~= 'in_progress' then return 0 end
redis.call('HSET', turn_key, 'stop', 1)
return 1
